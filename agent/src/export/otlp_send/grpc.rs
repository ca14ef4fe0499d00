//! OTLP/gRPC.

use std::error::Error;

use tonic::{
    Request, Status,
    metadata::MetadataMap,
    transport::{self, Channel, ClientTlsConfig},
};

use super::{Endpoint, Failure, Signal, Target, USER_AGENT};

/// A connection to a collector, made on first use and again after it was lost.
pub(super) struct GrpcClient {
    endpoint: transport::Endpoint,
    headers: MetadataMap,
    has_gzip: bool,
    channel: Option<Channel>,
}

impl GrpcClient {
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        Ok(Self {
            endpoint: transport_endpoint(&target.endpoint)
                .map_err(|error| Failure::Unreachable(error.into()))?,
            headers: MetadataMap::from_headers(target.headers.map().clone()),
            has_gzip: target.has_gzip,
            channel: None,
        })
    }

    pub(super) async fn export<S: Signal>(&mut self, request: &S) -> Result<S::Answer, Failure> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self
                .endpoint
                .connect()
                .await
                .map_err(|error| Failure::Unreachable(error.into()))?,
        };
        let mut message = Request::new(request.clone());
        *message.metadata_mut() = self.headers.clone();
        let answer = S::call(channel.clone(), self.has_gzip, message).await;
        let answer = answer.map_err(failure);
        if !matches!(answer, Err(Failure::Lost(_))) {
            self.channel = Some(channel);
        }
        answer.map(tonic::Response::into_inner)
    }
}

fn transport_endpoint(endpoint: &Endpoint) -> Result<transport::Endpoint, transport::Error> {
    let transport = transport::Endpoint::from(endpoint.uri().clone()).user_agent(USER_AGENT)?;
    if endpoint.has_tls() {
        return transport.tls_config(ClientTlsConfig::new().with_native_roots());
    }
    Ok(transport)
}

/// tonic reports a broken connection as a status too, mostly `UNKNOWN`, which is final. Only such
/// a status has a transport error behind it; one sent by the collector has no source.
fn failure(status: Status) -> Failure {
    let is_transport = status
        .source()
        .is_some_and(|source| source.is::<transport::Error>());
    if is_transport {
        Failure::of_connection(status.into())
    } else {
        Failure::Grpc(Box::new(status))
    }
}
