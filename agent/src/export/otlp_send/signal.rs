//! What can be sent: each signal has a request, an answer, and a place of its own.

use std::future::Future;

use hotspan_proto::otlp::{
    metrics_service::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_client::MetricsServiceClient,
    },
    profiles_service::{
        ExportProfilesServiceRequest, ExportProfilesServiceResponse,
        profiles_service_client::ProfilesServiceClient,
    },
};
use prost::Message;
use tonic::{Request, Response, Status, codec::CompressionEncoding::Gzip, transport::Channel};

/// The request of one of OTLP's signals.
pub trait Signal: Message + Clone + Sized + 'static {
    /// What the collector answers.
    type Answer: Message + Default;

    /// What to call what is sent.
    const NAME: &'static str;

    /// How environment variables of this signal alone name it: `OTEL_EXPORTER_OTLP_NAME_ENDPOINT`.
    const VARIABLE: &'static str;

    /// Where OTLP/HTTP takes it, below the collector's address.
    const HTTP_PATH: &'static str;

    /// How many of what was sent were thrown away, and what the collector says about that.
    fn rejected(answer: Self::Answer) -> Option<(i64, String)>;

    /// Sends it over gRPC.
    fn call(
        channel: Channel,
        has_gzip: bool,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

impl Signal for ExportProfilesServiceRequest {
    type Answer = ExportProfilesServiceResponse;

    const NAME: &'static str = "profile";
    const VARIABLE: &'static str = "PROFILES";
    const HTTP_PATH: &'static str = "/v1development/profiles";

    fn rejected(answer: Self::Answer) -> Option<(i64, String)> {
        let partial = answer.partial_success?;
        Some((partial.rejected_profiles, partial.error_message))
    }

    async fn call(
        channel: Channel,
        has_gzip: bool,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        // grpc-go compresses its answer as the request was, asked or not.
        let mut client = ProfilesServiceClient::new(channel).accept_compressed(Gzip);
        if has_gzip {
            client = client.send_compressed(Gzip);
        }
        client.export(request).await
    }
}

impl Signal for ExportMetricsServiceRequest {
    type Answer = ExportMetricsServiceResponse;

    const NAME: &'static str = "metrics";
    const VARIABLE: &'static str = "METRICS";
    const HTTP_PATH: &'static str = "/v1/metrics";

    fn rejected(answer: Self::Answer) -> Option<(i64, String)> {
        let partial = answer.partial_success?;
        Some((partial.rejected_data_points, partial.error_message))
    }

    async fn call(
        channel: Channel,
        has_gzip: bool,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        let mut client = MetricsServiceClient::new(channel).accept_compressed(Gzip);
        if has_gzip {
            client = client.send_compressed(Gzip);
        }
        client.export(request).await
    }
}
