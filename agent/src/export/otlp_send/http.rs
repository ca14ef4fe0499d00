//! OTLP/HTTP with protobuf bodies.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use flate2::{Compression, write::GzEncoder};
use hotspan_proto::rpc;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message;

use super::{Failure, Signal, Target, failure};

const PROTOBUF: &str = "application/x-protobuf";

/// Most bytes that are read of an answer: the specification's limit for clients.
const ANSWER_BYTES: usize = 4 << 20;

/// A pool of connections to a collector.
pub(super) struct HttpClient {
    connections: Connections,
    uri: Uri,
    headers: HeaderMap,
    has_gzip: bool,
}

/// The system's root certificates are needed, and looked for, only with TLS.
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Connections {
    fn new(has_tls: bool) -> io::Result<Self> {
        let builder = Client::builder(TokioExecutor::new());
        if !has_tls {
            return Ok(Self::Plain(builder.build_http()));
        }
        let tls = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_only()
            .enable_http1()
            .build();
        Ok(Self::Tls(builder.build(tls)))
    }

    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
        }
    }
}

impl HttpClient {
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let endpoint = &target.endpoint;
        let mut headers = target.headers.map().clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        if target.has_gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
        Ok(Self {
            connections: Connections::new(endpoint.has_tls())
                .map_err(|error| Failure::Unreachable(error.into()))?,
            uri: endpoint.uri().clone(),
            headers,
            has_gzip: target.has_gzip,
        })
    }

    pub(super) async fn export<S: Signal>(&self, request: &S) -> Result<S::Answer, Failure> {
        let mut body = request.encode_to_vec();
        if self.has_gzip {
            body = gzip(&body).expect("a vector takes all bytes");
        }
        let mut message = Request::new(Full::from(body));
        *message.method_mut() = Method::POST;
        *message.uri_mut() = self.uri.clone();
        *message.headers_mut() = self.headers.clone();
        let answer = self.connections.request(message).await.map_err(|error| {
            if error.is_connect() {
                Failure::Unreachable(error.into())
            } else {
                Failure::of_connection(error.into())
            }
        })?;
        read_answer::<S>(answer).await
    }
}

async fn read_answer<S: Signal>(answer: Response<Incoming>) -> Result<S::Answer, Failure> {
    let (head, body) = answer.into_parts();
    // The status alone decides. With success, a body that cannot be read must not make us send
    // what it took twice.
    let body = match Limited::new(body, ANSWER_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    if head.status.is_success() {
        return Ok(S::Answer::decode(body).unwrap_or_default());
    }
    Err(Failure::Http {
        status: head.status,
        retry_after: failure::retry_after(&head.headers, SystemTime::now()),
        message: error_message(&head.headers, &body),
    })
}

/// What an error's body says: a `google.rpc.Status`, or text from something between us and the
/// collector. A page of HTML says nothing that the status does not.
fn error_message(headers: &HeaderMap, body: &[u8]) -> String {
    let kind = headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |kind| kind.as_bytes());
    if kind.starts_with(PROTOBUF.as_bytes()) {
        return rpc::Status::decode(body).unwrap_or_default().message;
    }
    if kind.starts_with(b"text/plain") {
        return String::from_utf8_lossy(body).trim().to_owned();
    }
    String::new()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}
