//! Writers of finished profiles: one file per format or destination.
//!
//! In: a [`crate::model::Profile`]. Out: bytes, or a request to a collector. Exporters do no
//! symbolization and know nothing of how the profile was captured.
