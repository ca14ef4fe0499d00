//! Sends profiles to a collector: OTLP over gRPC or HTTP.
//!
//! In: requests made by [`super::otlp_profiles`], where to and how long to try. Out: what the
//! collector said. The table of what is tried again is that of the OTLP specification 1.x,
//! "OTLP/gRPC Response" and "OTLP/HTTP Response". There is no queue here, and no file.

mod endpoint;
mod failure;
mod grpc;
mod headers;
mod http;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hotspan_proto::otlp::profiles_service::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use tokio::time::{Instant, sleep, timeout_at};

pub use self::{
    endpoint::{BadEndpoint, Endpoint, Protocol},
    failure::Failure,
    headers::{BadHeader, Headers},
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
    /// Profiles the collector threw away all the same. Sending them again would not help.
    pub rejected_profiles: u64,
    /// What it said about that, or as a warning, from the last request it said anything about.
    pub message: Option<String>,
}

impl Receipt {
    fn add(&mut self, response: ExportProfilesServiceResponse) {
        self.requests += 1;
        let partial = response.partial_success.unwrap_or_default();
        self.rejected_profiles += u64::try_from(partial.rejected_profiles).unwrap_or(0);
        if !partial.error_message.is_empty() {
            self.message = Some(failure::printable(&partial.error_message));
        }
    }
}

/// Why a request did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nobody there, or nobody we can speak to.
    #[error("cannot reach the collector at {endpoint}: {failure}{}", failure.fix())]
    Unreachable {
        /// Where to.
        endpoint: Endpoint,
        /// Why not.
        failure: Failure,
    },
    /// The collector's answer is final.
    #[error("the collector at {endpoint} refused the profile: {failure}{}", failure.fix())]
    Refused {
        /// Where to.
        endpoint: Endpoint,
        /// Its answer.
        failure: Failure,
    },
    /// The collector might take it later than we can wait.
    #[error("the collector at {endpoint} did not take the profile in time: {failure}{}", failure.fix())]
    GaveUp {
        /// Where to.
        endpoint: Endpoint,
        /// Its last answer.
        failure: Failure,
    },
}

/// Sends `requests` one after the other over one connection, and stops at the first that the
/// collector does not take.
///
/// # Errors
/// [`SendError`] of the first request that was not taken. Those before it were.
pub async fn send(
    endpoint: &Endpoint,
    headers: &Headers,
    requests: &[ExportProfilesServiceRequest],
    policy: &Policy,
) -> Result<Receipt, SendError> {
    let mut client = Client::new(endpoint, headers).map_err(|failure| SendError::Unreachable {
        endpoint: endpoint.clone(),
        failure,
    })?;
    let mut receipt = Receipt::default();
    for request in requests {
        receipt.add(deliver(&mut client, endpoint, request, policy).await?);
    }
    if receipt.rejected_profiles > 0 || receipt.message.is_some() {
        tracing::warn!(
            %endpoint,
            count = receipt.rejected_profiles,
            reason = receipt.message,
            "the collector took the profiles with reservations"
        );
    }
    Ok(receipt)
}

async fn deliver(
    client: &mut Client,
    endpoint: &Endpoint,
    request: &ExportProfilesServiceRequest,
    policy: &Policy,
) -> Result<ExportProfilesServiceResponse, SendError> {
    let mut backoff = Backoff::new(policy.first_delay);
    loop {
        let until = policy.deadline.min(Instant::now() + policy.attempt);
        let failure = match timeout_at(until, client.export(request)).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::TimedOut,
        };
        let endpoint = endpoint.clone();
        if matches!(failure, Failure::Unreachable(_)) && !policy.waits_for_server {
            return Err(SendError::Unreachable { endpoint, failure });
        }
        let Some(at_least) = failure.retry_after() else {
            return Err(SendError::Refused { endpoint, failure });
        };
        let delay = backoff.next_delay(at_least, fastrand::f64());
        if Instant::now() + delay >= policy.deadline {
            return Err(SendError::GaveUp { endpoint, failure });
        }
        sleep(delay).await;
    }
}

enum Client {
    Grpc(Box<GrpcClient>),
    Http(Box<HttpClient>),
}

impl Client {
    fn new(endpoint: &Endpoint, headers: &Headers) -> Result<Self, Failure> {
        Ok(match endpoint.protocol() {
            Protocol::Grpc => Self::Grpc(Box::new(GrpcClient::new(endpoint, headers)?)),
            Protocol::Http => Self::Http(Box::new(HttpClient::new(endpoint, headers)?)),
        })
    }

    async fn export(
        &mut self,
        request: &ExportProfilesServiceRequest,
    ) -> Result<ExportProfilesServiceResponse, Failure> {
        match self {
            Self::Grpc(client) => client.export(request).await,
            Self::Http(client) => client.export(request).await,
        }
    }
}
