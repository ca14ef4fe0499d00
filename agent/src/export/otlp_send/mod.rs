//! Sends profiles and metrics to a collector: OTLP over gRPC or HTTP.
//!
//! In: requests made by [`super::otlp_profiles`] and [`super::otlp_metrics`], where to and how long to try. Out: what the
//! collector said. The table of what is tried again is that of the OTLP specification 1.x,
//! "OTLP/gRPC Response" and "OTLP/HTTP Response". There is no queue here, and no file.
//!
//! To add a signal: implement [`Signal`] for its request in `signal.rs`.

mod endpoint;
mod failure;
mod grpc;
mod headers;
mod http;
mod signal;
mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

pub use hotspan_proto::otlp::{
    metrics_service::ExportMetricsServiceRequest as MetricsRequest,
    profiles_service::ExportProfilesServiceRequest as ProfilesRequest,
};

pub use self::{
    endpoint::{BadEndpoint, Endpoint, Protocol},
    failure::Failure,
    headers::{BadHeader, Headers},
    signal::Signal,
    target::{BadTarget, Target, delta_is_preferred, profiles_target},
};
use self::{failure::Backoff, grpc::GrpcClient, http::HttpClient};

/// Who we are, as the specification's "User Agent" section has it.
const USER_AGENT: &str = concat!(
    "hotspan/",
    env!("CARGO_PKG_VERSION"),
    " OTel-OTLP-Exporter-Rust/",
    env!("CARGO_PKG_VERSION")
);

/// How long and how often to try.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// When to give up, all requests taken together.
    pub deadline: Instant,
    /// Longest wait for one answer.
    pub attempt: Duration,
    /// About how long to wait before the second attempt; doubles from there.
    pub first_delay: Duration,
    /// Whether to keep trying when no connection can be made.
    pub waits_for_server: bool,
}

impl Policy {
    /// For a command with a user in front of it: gives up after `total`, and at once when nobody
    /// listens at the endpoint.
    #[must_use]
    pub fn one_shot(total: Duration) -> Self {
        Self {
            deadline: Instant::now() + total,
            attempt: Duration::from_secs(10),
            first_delay: Duration::from_millis(500),
            waits_for_server: false,
        }
    }
}

/// What the collector made of the requests it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Requests taken.
    pub requests: u64,
    /// Profiles, or points of metrics, the collector threw away all the same. Sending them again
    /// would not help.
    pub rejected: u64,
    /// What it said about that, or as a warning, from the last request it said anything about.
    pub message: Option<String>,
}

impl Receipt {
    fn add<S: Signal>(&mut self, answer: S::Answer) {
        self.requests += 1;
        let (rejected, message) = S::rejected(answer).unwrap_or_default();
        self.rejected += u64::try_from(rejected).unwrap_or(0);
        if !message.is_empty() {
            self.message = Some(failure::printable(&message));
        }
    }
}

/// Why a request did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nobody there, or nobody we can speak to.
    #[error("cannot reach the collector at {endpoint}: {failure}{}", failure.fix(what))]
    Unreachable {
        /// What was sent.
        what: &'static str,
        /// Where to.
        endpoint: Box<Endpoint>,
        /// Why not.
        failure: Failure,
    },
    /// The collector's answer is final.
    #[error("the collector at {endpoint} refused the {what}: {failure}{}", failure.fix(what))]
    Refused {
        /// What was sent.
        what: &'static str,
        /// Where to.
        endpoint: Box<Endpoint>,
        /// Its answer.
        failure: Failure,
    },
    /// The collector might take it later than we can wait.
    #[error("the collector at {endpoint} did not take the {what} in time: {failure}{}", failure.fix(what))]
    GaveUp {
        /// What was sent.
        what: &'static str,
        /// Where to.
        endpoint: Box<Endpoint>,
        /// Its last answer.
        failure: Failure,
    },
}

/// A way to one collector, with a connection that is kept.
pub struct Sender {
    endpoint: Endpoint,
    client: Client,
}

enum Client {
    Grpc(Box<GrpcClient>),
    Http(Box<HttpClient>),
}

impl Sender {
    /// Nothing is sent, and nobody connected to, before [`Sender::send`].
    ///
    /// # Errors
    /// When there are no root certificates for TLS.
    pub fn new<S: Signal>(target: &Target) -> Result<Self, SendError> {
        let endpoint = target.endpoint.clone();
        let client = match endpoint.protocol() {
            Protocol::Grpc => GrpcClient::new(target).map(|client| Client::Grpc(Box::new(client))),
            Protocol::Http => HttpClient::new(target).map(|client| Client::Http(Box::new(client))),
        };
        match client {
            Ok(client) => Ok(Self { endpoint, client }),
            Err(failure) => Err(SendError::Unreachable {
                what: S::NAME,
                endpoint: endpoint.into(),
                failure,
            }),
        }
    }

    /// Sends `requests` one after the other, and stops at the first that the collector does not
    /// take.
    ///
    /// # Errors
    /// [`SendError`] of the first request that was not taken. Those before it were.
    pub async fn send<S: Signal>(
        &mut self,
        requests: &[S],
        policy: &Policy,
    ) -> Result<Receipt, SendError> {
        let mut receipt = Receipt::default();
        for request in requests {
            receipt.add::<S>(self.deliver(request, policy).await?);
        }
        if receipt.rejected > 0 || receipt.message.is_some() {
            tracing::warn!(
                endpoint = %self.endpoint,
                signal = S::NAME,
                count = receipt.rejected,
                reason = receipt.message,
                "the collector took what was sent with reservations"
            );
        }
        Ok(receipt)
    }

    async fn deliver<S: Signal>(
        &mut self,
        request: &S,
        policy: &Policy,
    ) -> Result<S::Answer, SendError> {
        let what = S::NAME;
        let mut backoff = Backoff::new(policy.first_delay);
        loop {
            let until = policy.deadline.min(Instant::now() + policy.attempt);
            let failure = match timeout_at(until, self.client.export(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::TimedOut,
            };
            let endpoint = Box::new(self.endpoint.clone());
            if matches!(failure, Failure::Unreachable(_)) && !policy.waits_for_server {
                return Err(SendError::Unreachable {
                    what,
                    endpoint,
                    failure,
                });
            }
            let Some(at_least) = failure.retry_after() else {
                return Err(SendError::Refused {
                    what,
                    endpoint,
                    failure,
                });
            };
            let delay = backoff.next_delay(at_least, fastrand::f64());
            if Instant::now() + delay >= policy.deadline {
                return Err(SendError::GaveUp {
                    what,
                    endpoint,
                    failure,
                });
            }
            sleep(delay).await;
        }
    }
}

impl Client {
    async fn export<S: Signal>(&mut self, request: &S) -> Result<S::Answer, Failure> {
        match self {
            Self::Grpc(client) => client.export(request).await,
            Self::Http(client) => client.export(request).await,
        }
    }
}

/// Sends `requests` over a connection of their own.
///
/// # Errors
/// [`SendError`] of the first request that was not taken. Those before it were.
pub async fn send<S: Signal>(
    target: &Target,
    requests: &[S],
    policy: &Policy,
) -> Result<Receipt, SendError> {
    Sender::new::<S>(target)?.send(requests, policy).await
}
