//! One attempt that failed: what it was, whether to try again, and when.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, SystemTime},
};

use hotspan_proto::rpc;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use prost::Message;
use tonic::{Code, Status};

/// Longest wait a collector can ask for. Beyond it every caller has given up.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 3600);

/// Where our own delays stop to double.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Why an attempt failed.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be made.
    Unreachable(Box<dyn Error + Send + Sync>),
    /// The connection broke before the answer.
    Lost(Box<dyn Error + Send + Sync>),
    /// Who listens there does not speak our protocol.
    Foreign(Box<dyn Error + Send + Sync>),
    /// There was no answer in time.
    TimedOut,
    /// A gRPC status other than OK.
    Grpc(Box<Status>),
    /// An HTTP status other than success.
    Http {
        /// The status.
        status: StatusCode,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
        /// What the body says.
        message: String,
    },
}

impl Failure {
    /// What an error on a connection that stood means.
    pub(super) fn of_connection(error: Box<dyn Error + Send + Sync>) -> Self {
        if is_foreign(&*error) {
            Self::Foreign(error)
        } else {
            Self::Lost(error)
        }
    }

    /// How long to wait at least before the next attempt; `None` when there must be none.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::TimedOut => Some(Duration::ZERO),
            Self::Foreign(_) => None,
            Self::Grpc(status) => retry_of_grpc(status),
            Self::Http {
                status,
                retry_after,
                ..
            } => matches!(status.as_u16(), 429 | 502 | 503 | 504)
                .then(|| retry_after.unwrap_or_default()),
        }
    }

    /// What the user can do about it, to be put behind it.
    pub(super) fn fix(&self, what: &str) -> &'static str {
        const PROFILES: &str = "; it does not take profiles here: an OpenTelemetry Collector needs \
                                --feature-gates=service.profilesSupport and a profiles pipeline";
        const METRICS: &str = "; it does not take metrics here: an OpenTelemetry Collector needs a \
                               metrics pipeline";
        const HEADER: &str = "; give it a header by OTEL_EXPORTER_OTLP_HEADERS=authorization=VALUE";
        match self {
            Self::Grpc(status) => match status.code() {
                Code::Unimplemented if what == "profile" => PROFILES,
                Code::Unimplemented => METRICS,
                Code::Unauthenticated | Code::PermissionDenied => HEADER,
                _ => "",
            },
            Self::Http { status, .. } => match *status {
                StatusCode::NOT_FOUND if what == "profile" => PROFILES,
                StatusCode::NOT_FOUND => METRICS,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => HEADER,
                _ => "",
            },
            Self::Unreachable(error) if is_invalid_data(&**error) => {
                "; does it speak TLS here, with a certificate this system trusts?"
            }
            // Some servers close a connection in another protocol without a word.
            Self::Foreign(_) | Self::Lost(_) => {
                "; is it the right port? 4317 is for gRPC, 4318 for HTTP"
            }
            Self::Unreachable(_) | Self::TimedOut => "",
        }
    }
}

/// Whether the peer's bytes were no HTTP/1, or no HTTP/2 so that we told it to go away.
fn is_foreign(error: &(dyn Error + 'static)) -> bool {
    let is_no_http1 = error
        .downcast_ref::<hyper::Error>()
        .is_some_and(hyper::Error::is_parse);
    let is_no_http2 = error
        .downcast_ref::<h2::Error>()
        .is_some_and(|error| error.is_go_away() && error.is_library());
    is_no_http1 || is_no_http2 || error.source().is_some_and(is_foreign)
}

/// Whether it is an error of TLS, which is wrapped into I/O errors, and those into each other.
fn is_invalid_data(error: &(dyn Error + 'static)) -> bool {
    root(error)
        .downcast_ref::<io::Error>()
        .is_some_and(|error| match error.get_ref() {
            _ if error.kind() == io::ErrorKind::InvalidData => true,
            Some(inner) => is_invalid_data(inner),
            None => false,
        })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = match self {
            Self::Unreachable(error) => return write!(f, "{}", root(&**error)),
            Self::Lost(error) => return write!(f, "the connection broke: {}", root(&**error)),
            Self::Foreign(error) => {
                return write!(f, "it speaks another protocol: {}", root(&**error));
            }
            Self::TimedOut => return f.write_str("no answer"),
            Self::Grpc(status) => {
                write!(f, "gRPC status {:?}", status.code())?;
                printable(status.message())
            }
            Self::Http {
                status, message, ..
            } => {
                write!(f, "HTTP status {status}")?;
                printable(message)
            }
        };
        if message.is_empty() {
            return Ok(());
        }
        write!(f, " ({message})")
    }
}

/// The innermost error is the one that says what happened; those around it say "transport error".
fn root<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    error.source().map_or(error, root)
}

/// The start of a text from the network, fit for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The retry table for gRPC: `RESOURCE_EXHAUSTED` only when the collector says that it will
/// recover.
fn retry_of_grpc(status: &Status) -> Option<Duration> {
    let delay = retry_info(status);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Some(delay.unwrap_or_default()),
        Code::ResourceExhausted => delay,
        _ => None,
    }
}

fn retry_info(status: &Status) -> Option<Duration> {
    let status = rpc::Status::decode(status.details()).ok()?;
    let detail = status
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = rpc::RetryInfo::decode(&*detail.value).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).unwrap_or(0);
    let nanos = u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999);
    Some(Duration::new(seconds, nanos).min(LONGEST_DELAY))
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(delay.min(LONGEST_DELAY))
}

/// Delays that double, with jitter so that many senders do not come back together.
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration) -> Self {
        Self { next: first }
    }

    /// The next delay: a quarter more or less than its turn, and never less than the collector
    /// asked for. `random` is from 0 to 1.
    pub(super) fn next_delay(&mut self, at_least: Duration, random: f64) -> Duration {
        let turn = self.next.max(at_least);
        self.next = (turn * 2).min(LONGEST_BACKOFF);
        let own = turn.mul_f64(0.75 + random / 2.0);
        own.max(at_least.mul_f64(1.0 + random / 4.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn delays_double_and_jitter_by_a_quarter() {
        let mut backoff = Backoff::new(Duration::from_millis(500));
        let mut next = |random| backoff.next_delay(Duration::ZERO, random).as_millis();
        assert_eq!([next(0.5), next(0.0), next(1.0)], [500, 750, 2_500]);
        for _ in 0..10 {
            next(0.5);
        }
        assert_eq!(next(0.5), 30_000);
    }

    #[test]
    fn a_delay_asked_for_is_the_least_and_the_new_base() {
        let mut backoff = Backoff::new(Duration::from_millis(500));
        let asked = Duration::from_secs(4);
        assert_eq!(backoff.next_delay(asked, 0.0), asked);
        assert_eq!(
            backoff.next_delay(Duration::ZERO, 0.5),
            Duration::from_secs(8)
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, expected) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sunday, 06-Nov-94 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("18446744073709551615", Some(24 * 3600)),
            ("-1", None),
            ("soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{value}");
        }
    }

    #[test]
    fn hostile_details_are_no_retry_info() {
        for details in [&b"\xff\xff\xff"[..], b"", &[0x1a; 64]] {
            let status = Status::with_details(Code::ResourceExhausted, "", details.to_vec().into());
            assert_eq!(retry_of_grpc(&status), None);
        }
    }

    #[test]
    fn messages_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\r\nc"), "a[2Jbc");
        assert_eq!(printable(&"x".repeat(1_000)).len(), 300);
    }
}
