//! Against a collector that answers as told.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{Read, Write},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ::http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE, response::Builder};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use hotspan_proto::{
    otlp::{
        profiles::ProfilesDictionary,
        profiles_service::{
            ExportProfilesPartialSuccess, ExportProfilesServiceRequest,
            ExportProfilesServiceResponse,
        },
    },
    rpc,
};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
    time::Instant,
};
use tonic::{Code, Status};

use super::*;

/// How late a busy machine may make what should happen at once. Less than any wait it is compared
/// with.
const MARGIN: Duration = Duration::from_secs(5);

/// One scripted answer.
enum Answer {
    /// Success, with this message.
    Accept(ExportProfilesServiceResponse),
    /// A gRPC status.
    Grpc(Status),
    /// An HTTP answer.
    Http(Builder, &'static [u8]),
    /// The connection is closed.
    HangUp,
    /// No answer at all.
    Silence,
}

fn accept() -> Answer {
    Answer::Accept(ExportProfilesServiceResponse::default())
}

fn http(status: u16) -> Answer {
    Answer::Http(Response::builder().status(status), b"")
}

/// A request as the collector got it.
struct Seen {
    at: Instant,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// Listens on loopback and plays a script; what comes after its end is accepted.
struct Collector {
    protocol: Protocol,
    port: u16,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

struct State {
    script: VecDeque<Answer>,
    seen: Vec<Seen>,
}

impl Collector {
    async fn start(protocol: Protocol, script: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            script: script.into_iter().collect(),
            seen: Vec::new(),
        }));
        let server = tokio::spawn(serve(listener, protocol, state.clone()));
        Self {
            protocol,
            port,
            state,
            server,
        }
    }

    fn endpoint(&self) -> Endpoint {
        let scheme = match self.protocol {
            Protocol::Grpc => "grpc",
            Protocol::Http => "http",
        };
        endpoint(&format!("{scheme}://127.0.0.1:{}", self.port))
    }

    async fn send(&self) -> Result<Receipt, SendError> {
        self.send_with(&policy()).await
    }

    async fn send_with(&self, policy: &Policy) -> Result<Receipt, SendError> {
        let mut target = target(self.endpoint());
        target.headers = Headers::parse("x-api-key=sesame,user-agent=other").unwrap();
        send(&target, &[request()], policy).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn attempts(&self) -> usize {
        self.state().seen.len()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, protocol: Protocol, state: Arc<Mutex<State>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = TokioIo::new(stream);
        let state = state.clone();
        let hang_up = Arc::new(Notify::new());
        let service = service_fn({
            let hang_up = hang_up.clone();
            move |request| answer(request, protocol, state.clone(), hang_up.clone())
        });
        let connection = async move {
            let _ = match protocol {
                Protocol::Grpc => {
                    let server = http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(stream, service).await
                }
                Protocol::Http => {
                    let server = http1::Builder::new();
                    server.serve_connection(stream, service).await
                }
            };
        };
        tokio::spawn(async move {
            tokio::select! {
                () = hang_up.notified() => {}
                () = connection => {}
            }
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    protocol: Protocol,
    state: Arc<Mutex<State>>,
    hang_up: Arc<Notify>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    let answer = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen {
            at: Instant::now(),
            path: head.uri.path().to_owned(),
            headers: head.headers,
            body,
        });
        state.script.pop_front().unwrap_or_else(accept)
    };
    Ok(match answer {
        Answer::Accept(message) => match protocol {
            Protocol::Grpc => grpc_success(&message),
            Protocol::Http => Response::builder()
                .header(CONTENT_TYPE, "application/x-protobuf")
                .body(Full::from(message.encode_to_vec()).boxed())
                .unwrap(),
        },
        Answer::Grpc(status) => status
            .into_http::<Full<Bytes>>()
            .map(|_| Full::default().boxed()),
        Answer::Http(builder, body) => builder.body(Full::from(body).boxed()).unwrap(),
        Answer::HangUp => {
            hang_up.notify_one();
            std::future::pending().await
        }
        Answer::Silence => std::future::pending().await,
    })
}

/// Compressed, as grpc-go does when the request was.
fn grpc_success(message: &ExportProfilesServiceResponse) -> Response<Body> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&message.encode_to_vec()).unwrap();
    let message = encoder.finish().unwrap();
    let mut frame = vec![1];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), 0.into())]);
    let body = Full::from(frame).with_trailers(async { Some(Ok(trailers)) });
    Response::builder()
        .header(CONTENT_TYPE, "application/grpc")
        .header("grpc-encoding", "gzip")
        .body(body.boxed())
        .unwrap()
}

fn request() -> ExportProfilesServiceRequest {
    ExportProfilesServiceRequest {
        dictionary: Some(ProfilesDictionary {
            string_table: vec![String::new(), "hot".repeat(1_000)],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::of_signal::<ExportProfilesServiceRequest>(url, None).unwrap()
}

fn target(endpoint: Endpoint) -> Target {
    Target::of::<ExportProfilesServiceRequest>(endpoint, |_| None).unwrap()
}

async fn send_to(
    endpoint: &Endpoint,
    requests: &[ExportProfilesServiceRequest],
    policy: &Policy,
) -> Result<Receipt, SendError> {
    send(&target(endpoint.clone()), requests, policy).await
}

fn policy() -> Policy {
    Policy {
        first_delay: Duration::from_millis(5),
        ..Policy::one_shot(Duration::from_secs(10))
    }
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn retry_info(delay: Duration) -> Bytes {
    let info = rpc::RetryInfo {
        retry_delay: Some(rpc::Duration {
            seconds: delay.as_secs() as i64,
            nanos: delay.subsec_nanos() as i32,
        }),
    };
    let status = rpc::Status {
        details: vec![
            rpc::Any {
                type_url: "type.googleapis.com/google.rpc.DebugInfo".to_owned(),
                value: vec![1, 2, 3],
            },
            rpc::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: info.encode_to_vec(),
            },
        ],
        ..Default::default()
    };
    status.encode_to_vec().into()
}

#[tokio::test]
async fn grpc_sends_gzip_with_headers_and_user_agent() {
    let collector = Collector::start(Protocol::Grpc, []).await;
    let receipt = collector.send().await.unwrap();
    assert_eq!(receipt.requests, 1);
    let state = collector.state();
    let seen = &state.seen[0];
    assert_eq!(
        seen.path,
        "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"
    );
    assert_eq!(seen.headers["grpc-encoding"], "gzip");
    assert_eq!(seen.headers["x-api-key"], "sesame");
    let agent = seen.headers["user-agent"].to_str().unwrap();
    assert!(agent.contains(USER_AGENT), "{agent}");
    let (is_compressed, message) = (seen.body[0], gunzip(&seen.body[5..]));
    assert_eq!(is_compressed, 1);
    assert_eq!(message, request().encode_to_vec());
}

#[tokio::test]
async fn http_sends_gzip_with_headers_and_user_agent() {
    let collector = Collector::start(Protocol::Http, []).await;
    collector.send().await.unwrap();
    let state = collector.state();
    let seen = &state.seen[0];
    assert_eq!(seen.path, "/v1development/profiles");
    assert_eq!(seen.headers["content-type"], "application/x-protobuf");
    assert_eq!(seen.headers["content-encoding"], "gzip");
    assert_eq!(seen.headers["x-api-key"], "sesame");
    assert_eq!(seen.headers["user-agent"], USER_AGENT);
    assert!(seen.body.len() < request().encoded_len());
    assert_eq!(gunzip(&seen.body), request().encode_to_vec());
}

#[tokio::test]
async fn several_requests_share_a_connection_and_a_receipt() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol, []).await;
        let three = [request(), request(), request()];
        let receipt = send_to(&collector.endpoint(), &three, &policy()).await;
        assert_eq!(receipt.unwrap().requests, 3);
        assert_eq!(collector.attempts(), 3);
    }
}

#[tokio::test]
async fn each_grpc_code_is_tried_again_or_not() {
    for code in (1..=16).map(Code::from_i32) {
        let is_retried = matches!(
            code,
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
        );
        let answer = Answer::Grpc(Status::new(code, "because"));
        let collector = Collector::start(Protocol::Grpc, [answer]).await;
        let result = collector.send().await;
        assert_eq!(
            collector.attempts(),
            1 + usize::from(is_retried),
            "{code:?}"
        );
        match result {
            Ok(_) => assert!(is_retried, "{code:?}"),
            Err(SendError::Refused { failure, .. }) => {
                assert_eq!(
                    failure.to_string(),
                    format!("gRPC status {code:?} (because)")
                );
            }
            Err(other) => panic!("{code:?}: {other}"),
        }
    }
}

#[tokio::test]
async fn each_http_status_is_tried_again_or_not() {
    for status in [
        301, 400, 401, 403, 404, 408, 413, 429, 500, 501, 502, 503, 504,
    ] {
        let is_retried = [429, 502, 503, 504].contains(&status);
        let collector = Collector::start(Protocol::Http, [http(status)]).await;
        let result = collector.send().await;
        assert_eq!(
            collector.attempts(),
            1 + usize::from(is_retried),
            "{status}"
        );
        match result {
            Ok(_) => assert!(is_retried, "{status}"),
            Err(SendError::Refused { .. }) => assert!(!is_retried, "{status}"),
            Err(other) => panic!("{status}: {other}"),
        }
    }
}

/// The time between the first and the second attempt.
async fn pause(protocol: Protocol, first: Answer) -> Duration {
    let collector = Collector::start(protocol, [first]).await;
    collector.send().await.unwrap();
    let state = collector.state();
    assert_eq!(state.seen.len(), 2);
    state.seen[1].at - state.seen[0].at
}

#[tokio::test]
async fn retry_info_is_waited_for_and_makes_exhaustion_retryable() {
    let delay = Duration::from_millis(300);
    for code in [Code::ResourceExhausted, Code::Unavailable] {
        let status = Status::with_details(code, "", retry_info(delay));
        assert!(
            pause(Protocol::Grpc, Answer::Grpc(status)).await >= delay,
            "{code:?}"
        );
    }
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let in_seconds = Response::builder().status(429).header("retry-after", "1");
    let pause_seconds = pause(Protocol::Http, Answer::Http(in_seconds, b"")).await;
    assert!(pause_seconds >= Duration::from_secs(1));
    // A date has whole seconds, so two seconds ahead is more than one.
    let then = std::time::SystemTime::now() + Duration::from_secs(2);
    let as_date = Response::builder()
        .status(503)
        .header("retry-after", httpdate::fmt_http_date(then));
    let pause_date = pause(Protocol::Http, Answer::Http(as_date, b"")).await;
    assert!(pause_date >= Duration::from_millis(500));
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let later = Response::builder().status(503).header("retry-after", "60");
    let collector = Collector::start(Protocol::Http, [Answer::Http(later, b"")]).await;
    let start = Instant::now();
    let error = collector.send().await.unwrap_err();
    assert!(matches!(error, SendError::GaveUp { .. }), "{error}");
    assert!(start.elapsed() < MARGIN);
}

#[tokio::test]
async fn attempts_end_at_the_deadline() {
    let script = (0..1_000).map(|_| http(503));
    let collector = Collector::start(Protocol::Http, script).await;
    let policy = Policy {
        deadline: Instant::now() + Duration::from_secs(1),
        ..policy()
    };
    let error = collector.send_with(&policy).await.unwrap_err();
    assert!(Instant::now() < policy.deadline + MARGIN);
    assert_eq!(
        error.to_string(),
        format!(
            "the collector at {} did not take the profile in time: HTTP status 503 Service \
             Unavailable",
            collector.endpoint()
        )
    );
    assert!(collector.attempts() >= 2);
}

#[tokio::test]
async fn partial_success_is_not_tried_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let partial = Answer::Accept(ExportProfilesServiceResponse {
            partial_success: Some(ExportProfilesPartialSuccess {
                rejected_profiles: 3,
                error_message: "too\told".to_owned(),
            }),
        });
        let collector = Collector::start(protocol, [partial]).await;
        let receipt = collector.send().await.unwrap();
        assert_eq!(receipt.rejected, 3);
        assert_eq!(receipt.message.as_deref(), Some("tooold"));
        assert_eq!(collector.attempts(), 1);
    }
}

#[tokio::test]
async fn a_broken_connection_is_tried_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let script = [Answer::HangUp, accept(), Answer::HangUp];
        let collector = Collector::start(protocol, script).await;
        let two = [request(), request()];
        let receipt = send_to(&collector.endpoint(), &two, &policy()).await;
        assert_eq!(receipt.unwrap().requests, 2);
        assert_eq!(collector.attempts(), 4);
    }
}

#[tokio::test]
async fn a_connection_closed_before_the_request_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let state = Arc::new(Mutex::new(State {
        script: VecDeque::new(),
        seen: Vec::new(),
    }));
    let server = tokio::spawn({
        let state = state.clone();
        async move {
            let (stream, _) = listener.accept().await.unwrap();
            // Long enough for the client to take the connection for good and send its request.
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(stream);
            serve(listener, Protocol::Grpc, state).await;
        }
    });
    let endpoint = endpoint(&format!("grpc://127.0.0.1:{port}"));
    let receipt = send_to(&endpoint, &[request()], &policy()).await;
    assert_eq!(receipt.unwrap().requests, 1);
    assert_eq!(state.lock().unwrap().seen.len(), 1);
    server.abort();
}

#[tokio::test]
async fn silence_is_not_waited_for_longer_than_an_attempt() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol, [Answer::Silence]).await;
        let policy = Policy {
            attempt: Duration::from_millis(200),
            ..policy()
        };
        collector.send_with(&policy).await.unwrap();
        assert!(collector.attempts() >= 2);
    }
}

/// A port of loopback where nobody listens.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let port = free_port().await;
    for scheme in ["http", "https", "grpc", "grpcs"] {
        let start = Instant::now();
        let endpoint = endpoint(&format!("{scheme}://127.0.0.1:{port}"));
        let result = send_to(&endpoint, &[request()], &policy()).await;
        let error = result.unwrap_err();
        assert!(start.elapsed() < MARGIN);
        let expected = format!("cannot reach the collector at {endpoint}: ");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(matches!(error, SendError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_server_to_come_is_waited_for_when_asked() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let late = Collector::start(protocol, []).await;
        let policy = Policy {
            deadline: Instant::now() + Duration::from_millis(300),
            waits_for_server: true,
            ..policy()
        };
        late.server.abort();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let error = late.send_with(&policy).await.unwrap_err();
        assert!(matches!(error, SendError::GaveUp { .. }), "{error}");

        let listener = TcpListener::bind(("127.0.0.1", late.port)).await.unwrap();
        let server = tokio::spawn(serve(listener, protocol, late.state.clone()));
        late.send().await.unwrap();
        server.abort();
    }
}

#[tokio::test]
async fn a_final_answer_comes_with_its_reason_and_the_fix() {
    let collector = Collector::start(Protocol::Http, [http(404)]).await;
    let error = collector.send().await.unwrap_err().to_string();
    assert!(
        error.contains("refused the profile: HTTP status 404 Not Found"),
        "{error}"
    );
    assert!(
        error.contains("--feature-gates=service.profilesSupport"),
        "{error}"
    );

    let status = rpc::Status {
        message: "bad dictionary".to_owned(),
        ..Default::default()
    };
    let answer = Answer::Http(
        Response::builder()
            .status(StatusCode::BAD_REQUEST)
            .header(CONTENT_TYPE, "application/x-protobuf"),
        status.encode_to_vec().leak(),
    );
    let collector = Collector::start(Protocol::Http, [answer]).await;
    let error = collector.send().await.unwrap_err().to_string();
    assert!(
        error.ends_with("HTTP status 400 Bad Request (bad dictionary)"),
        "{error}"
    );
}

#[tokio::test]
async fn the_wrong_protocol_ends_with_a_hint() {
    for (server, scheme, hint) in [
        (Protocol::Http, "grpc", "4317 is for gRPC"),
        (Protocol::Grpc, "http", "4317 is for gRPC"),
        (Protocol::Http, "https", "does it speak TLS"),
        (Protocol::Grpc, "grpcs", "does it speak TLS"),
    ] {
        let collector = Collector::start(server, []).await;
        let endpoint = endpoint(&format!("{scheme}://127.0.0.1:{}", collector.port));
        let policy = Policy {
            deadline: Instant::now() + Duration::from_secs(1),
            ..policy()
        };
        let result = send_to(&endpoint, &[request()], &policy).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
        assert!(Instant::now() < policy.deadline + MARGIN);
    }
}

/// Go's HTTP server says something to a gRPC client, and its gRPC server to an HTTP client.
#[tokio::test]
async fn an_answer_in_another_protocol_is_final() {
    let http1 = &b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request"[..];
    let http2 = &b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0"[..];
    for (greeting, scheme) in [(http1, "grpc"), (http2, "http")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(greeting).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        });
        let endpoint = endpoint(&format!("{scheme}://127.0.0.1:{port}"));
        let result = send_to(&endpoint, &[request()], &policy()).await;
        let error = result.unwrap_err();
        assert!(matches!(error, SendError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("another protocol"), "{error}");
        server.abort();
    }
}
