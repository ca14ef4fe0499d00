//! What the live tests and contract tests of hotspan share.

pub mod otlp_json;
pub mod profcheck;
pub mod synthetic;
