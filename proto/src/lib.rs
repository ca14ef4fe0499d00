//! The wire messages hotspan speaks.
//!
//! One place for message types, whoever generated them, so that a change of version is a change
//! of this crate alone. The control API joins them here.

/// OTLP messages (opentelemetry-proto 1.10 and later; profiles are `v1development`).
pub mod otlp {
    pub use opentelemetry_proto::tonic::collector::profiles::v1development as profiles_service;
    pub use opentelemetry_proto::tonic::common::v1 as common;
    pub use opentelemetry_proto::tonic::profiles::v1development as profiles;
    pub use opentelemetry_proto::tonic::resource::v1 as resource;
}

/// pprof's `profile.proto`, with the [`pprof::Message`] trait of the prost version it was generated for.
pub mod pprof {
    pub use pprof::protos::*;
}
