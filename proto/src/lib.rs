//! The wire messages hotspan speaks.
//!
//! One place for message types, whoever generated them, so that a change of version is a change
//! of this crate alone. The control API joins them here.

/// OTLP messages (opentelemetry-proto 1.10 and later; profiles are `v1development`).
pub mod otlp {
    pub use opentelemetry_proto::tonic::collector::metrics::v1 as metrics_service;
    pub use opentelemetry_proto::tonic::collector::profiles::v1development as profiles_service;
    pub use opentelemetry_proto::tonic::common::v1 as common;
    pub use opentelemetry_proto::tonic::metrics::v1 as metrics;
    pub use opentelemetry_proto::tonic::profiles::v1development as profiles;
    pub use opentelemetry_proto::tonic::resource::v1 as resource;
}

/// `google.rpc`: what a collector says about a failure beside its code.
pub mod rpc {
    /// Body of an HTTP answer, and the `grpc-status-details-bin` trailer of gRPC.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        /// gRPC status code.
        #[prost(int32, tag = "1")]
        pub code: i32,
        /// For people.
        #[prost(string, tag = "2")]
        pub message: String,
        /// For programs.
        #[prost(message, repeated, tag = "3")]
        pub details: Vec<Any>,
    }

    /// `google.protobuf.Any`: an encoded message and its type.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Any {
        /// Ends with `/` and the full name of the message.
        #[prost(string, tag = "1")]
        pub type_url: String,
        /// The message.
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    /// When to try again.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RetryInfo {
        /// Least time to wait.
        #[prost(message, optional, tag = "1")]
        pub retry_delay: Option<Duration>,
    }

    /// `google.protobuf.Duration`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Duration {
        /// Whole seconds, of either sign.
        #[prost(int64, tag = "1")]
        pub seconds: i64,
        /// The rest in nanoseconds, of the same sign.
        #[prost(int32, tag = "2")]
        pub nanos: i32,
    }
}

/// pprof's `profile.proto`, with the [`pprof::Message`] trait of the prost version it was generated for.
pub mod pprof {
    pub use pprof::protos::*;
}
