//! OTLP profiles, `v1development` (opentelemetry-proto 1.10 and later).
//!
//! In: a [`Profile`]. Out: [`ExportProfilesServiceRequest`]s that obey every rule of the profiling
//! SIG's `profcheck`, or one of them as a file. Sending is [`super::otlp_send`]'s work.
//!
//! Each process is one `ResourceProfiles` with one scope and one profile: type `samples/count`,
//! period `cpu/nanoseconds`. Samples carry timestamps and no values; each timestamp counts 1.
//! Addresses are ELF addresses, and a mapping's limits are in the same space, so that a backend can
//! symbolize what has no name here.

mod dictionary;
mod json;
mod resource;

use std::io::{self, Write};

use hotspan_proto::otlp::{
    common::InstrumentationScope,
    profiles::{Profile as OtlpProfile, ResourceProfiles, Sample, ScopeProfiles, ValueType},
    profiles_service::ExportProfilesServiceRequest,
};
use indexmap::IndexMap;
use prost::Message;
use rustc_hash::FxBuildHasher;

use super::Options;
use crate::model::{self, ProcessIdx, Profile};
use dictionary::Dictionary;
pub use resource::Host;

/// The semantic conventions that the attribute names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Most bytes of an encoded request. OTLP allows 64 MiB since 1.11, but many gRPC servers still
/// stop at 4 MiB.
pub const REQUEST_BYTES: usize = 7 << 19;

/// Timestamps that are put into a request at once, so that one sample cannot be larger than
/// [`REQUEST_BYTES`].
const TIMESTAMPS_AT_ONCE: usize = 1 << 15;

/// Writes the whole profile as one encoded `ExportProfilesServiceRequest`.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, _options: &Options, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&whole(profile).encode_to_vec())
}

/// Writes the whole profile as one `ExportProfilesServiceRequest` in OTLP/JSON.
///
/// # Errors
/// Those of the writer.
pub fn write_json(profile: &Profile, _options: &Options, out: &mut dyn Write) -> io::Result<()> {
    json::write(&whole(profile), out)?;
    out.write_all(b"\n")
}

/// A file has no size limit, so it is never split.
fn whole(profile: &Profile) -> ExportProfilesServiceRequest {
    split(profile, &Host::this_one(), usize::MAX)
        .pop()
        .unwrap_or_default()
}

/// The profile as requests of at most [`REQUEST_BYTES`], each with a dictionary of its own.
/// A profile without samples is no request at all.
#[must_use]
pub fn requests(profile: &Profile, host: &Host) -> Vec<ExportProfilesServiceRequest> {
    split(profile, host, REQUEST_BYTES)
}

fn split(profile: &Profile, host: &Host, limit: usize) -> Vec<ExportProfilesServiceRequest> {
    let mut by_process = vec![Vec::new(); profile.processes.len()];
    for sample in &profile.samples {
        by_process[profile.threads[sample.thread.at()].process.at()].push(sample);
    }
    let mut done = Vec::new();
    let mut request = Request::new(profile, host);
    for (process, samples) in by_process.into_iter().enumerate() {
        let process = ProcessIdx(process as u32);
        for sample in samples {
            for timestamps in sample.timestamps_wall_ns.chunks(TIMESTAMPS_AT_ONCE) {
                if !request.add(process, sample, timestamps, limit) {
                    let full = std::mem::replace(&mut request, Request::new(profile, host));
                    done.push(full.finish());
                    request.add(process, sample, timestamps, usize::MAX);
                }
            }
        }
    }
    if !request.is_empty() {
        done.push(request.finish());
    }
    done
}

/// What makes two samples the same: stack, attributes, link.
type Identity = (i32, [i32; 3], i32);

/// A request in the making.
struct Request<'a> {
    profile: &'a Profile,
    host: &'a Host,
    dictionary: Dictionary<'a>,
    sample_type: ValueType,
    period_type: ValueType,
    processes: IndexMap<ProcessIdx, Samples, FxBuildHasher>,
    /// Upper bound of the encoded size of everything but the dictionary.
    bytes: usize,
}

type Samples = IndexMap<Identity, Vec<u64>, FxBuildHasher>;

impl<'a> Request<'a> {
    fn new(profile: &'a Profile, host: &'a Host) -> Self {
        let mut dictionary = Dictionary::new(profile);
        Self {
            profile,
            host,
            sample_type: dictionary.value_type("samples", "count"),
            period_type: dictionary.value_type("cpu", "nanoseconds"),
            dictionary,
            processes: IndexMap::default(),
            bytes: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Adds `timestamps` of `sample`. Returns false and leaves the request as it was when that
    /// would make it larger than `limit`; the first sample always fits.
    fn add(
        &mut self,
        process: ProcessIdx,
        sample: &model::Sample,
        timestamps: &[u64],
        limit: usize,
    ) -> bool {
        let before = self.dictionary.mark();
        let identity = (
            self.dictionary.stack(sample.stack),
            self.dictionary.sample_attributes(sample),
            self.dictionary.link(sample.link.as_ref()),
        );
        let bytes = self.bytes + self.cost(process, &identity, timestamps);
        if bytes + self.dictionary.encoded_bytes() > limit && !self.is_empty() {
            self.dictionary.forget_since(&before);
            return false;
        }
        self.bytes = bytes;
        self.processes
            .entry(process)
            .or_default()
            .entry(identity)
            .or_default()
            .extend_from_slice(timestamps);
        true
    }

    /// Upper bound of what the sample adds to the encoded size outside the dictionary.
    fn cost(&self, process: ProcessIdx, identity: &Identity, timestamps: &[u64]) -> usize {
        /// Resource and scope envelopes, window, types and period of a profile.
        const PROFILE_BYTES: usize = 256;
        /// Field keys and lengths of a sample, and its indices, at most five bytes each.
        const SAMPLE_BYTES: usize = 64;
        let samples = self.processes.get(&process);
        let mut bytes = size_of_val(timestamps);
        if samples.is_none_or(|samples| !samples.contains_key(identity)) {
            bytes += SAMPLE_BYTES;
        }
        if samples.is_none() {
            bytes += PROFILE_BYTES + self.resource(process).encoded_len();
        }
        bytes
    }

    fn resource(&self, process: ProcessIdx) -> hotspan_proto::otlp::resource::Resource {
        resource::of_process(&self.profile.processes[process.at()], self.host)
    }

    fn finish(mut self) -> ExportProfilesServiceRequest {
        let processes = std::mem::take(&mut self.processes);
        let resource_profiles = processes
            .into_iter()
            .map(|(process, samples)| ResourceProfiles {
                resource: Some(self.resource(process)),
                scope_profiles: vec![ScopeProfiles {
                    scope: Some(InstrumentationScope {
                        name: "hotspan".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..Default::default()
                    }),
                    profiles: vec![self.process_profile(samples)],
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            })
            .collect();
        ExportProfilesServiceRequest {
            resource_profiles,
            dictionary: Some(self.dictionary.finish()),
        }
    }

    fn process_profile(&self, samples: Samples) -> OtlpProfile {
        OtlpProfile {
            sample_type: Some(self.sample_type),
            samples: samples.into_iter().map(sample).collect(),
            time_unix_nano: self.profile.start_wall_ns,
            duration_nano: self.profile.duration_ns,
            period_type: Some(self.period_type),
            period: i64::from(1_000_000_000 / self.profile.rate_hz.max(1)),
            ..Default::default()
        }
    }
}

fn sample((identity, mut timestamps): (Identity, Vec<u64>)) -> Sample {
    let (stack_index, attribute_indices, link_index) = identity;
    // Two samples of the model can have the same identity here: names and ids are all that OTLP
    // knows of a thread.
    timestamps.sort_unstable();
    Sample {
        stack_index,
        attribute_indices: attribute_indices.to_vec(),
        link_index,
        values: Vec::new(),
        timestamps_unix_nano: timestamps,
    }
}
