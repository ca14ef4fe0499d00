//! Contract of the OTLP export: what goes out obeys the rules, and is what was in the model.

#![allow(
    clippy::unwrap_used,
    reason = "everything in this file is a test, what tests call included"
)]

use std::collections::BTreeMap;

use hotspan::export::otlp_profiles::{self, Host, REQUEST_BYTES, requests};
use hotspan::export::{Format, Options, format_of_name};
use hotspan::model::{FrameKind, Line, Profile, Sample, Stack, StackIdx};
use hotspan_proto::otlp::{
    common::any_value::Value, profiles::ProfilesDictionary,
    profiles_service::ExportProfilesServiceRequest,
};
use hotspan_tests::{otlp_json, profcheck, synthetic};
use prost::Message;

fn file(format: &str, profile: &Profile) -> Vec<u8> {
    let Format { write, .. } = format_of_name(format).unwrap();
    let mut bytes = Vec::new();
    write(profile, &Options::default(), &mut bytes).unwrap();
    bytes
}

fn decoded_file(profile: &Profile) -> ExportProfilesServiceRequest {
    ExportProfilesServiceRequest::decode(&*file("otlp", profile)).unwrap()
}

/// Samples per process and stack, in words: what both the model and a request can be turned into.
type Counts = BTreeMap<(u32, Vec<String>), u64>;

/// A frame without a name that a backend can use is its address.
fn counts_of_model(profile: &Profile) -> Counts {
    let mut counts = Counts::new();
    for sample in &profile.samples {
        let stack = profile.stack_frames(sample.stack).map(|frame| {
            let is_lost = frame
                .binary
                .is_some_and(|b| profile.binaries[b.at()].path.contains("gone"));
            if frame.is_named || frame.kind == FrameKind::Note || is_lost {
                let functions = frame.lines.iter().map(|line| &*line.function);
                functions.collect::<Vec<_>>().join("<")
            } else {
                format!("{:#x}", frame.addr)
            }
        });
        let pid = profile.process_of(sample).pid;
        *counts.entry((pid, stack.collect())).or_default() += sample.count();
    }
    counts
}

fn add_counts(request: &ExportProfilesServiceRequest, counts: &mut Counts) {
    let dictionary = request.dictionary.as_ref().unwrap();
    for resource in &request.resource_profiles {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let pid = attributes.iter().find(|kv| kv.key == "process.pid");
        let Some(Value::IntValue(pid)) = pid.unwrap().value.as_ref().unwrap().value else {
            panic!("{pid:?} is no number");
        };
        for sample in &resource.scope_profiles[0].profiles[0].samples {
            assert!(sample.timestamps_unix_nano.is_sorted());
            let stack = stack_in_words(dictionary, sample.stack_index);
            *counts.entry((pid as u32, stack)).or_default() +=
                sample.timestamps_unix_nano.len() as u64;
        }
    }
}

fn stack_in_words(dictionary: &ProfilesDictionary, stack: i32) -> Vec<String> {
    let locations = &dictionary.stack_table[stack as usize].location_indices;
    let words = locations.iter().map(|&location| {
        let location = &dictionary.location_table[location as usize];
        let names = location.lines.iter().map(|line| {
            let function = dictionary.function_table[line.function_index as usize];
            &*dictionary.string_table[function.name_strindex as usize]
        });
        match names.collect::<Vec<_>>() {
            names if names.is_empty() => format!("{:#x}", location.address),
            names => names.join("<"),
        }
    });
    words.collect()
}

#[test]
fn a_file_obeys_every_rule() {
    let request = decoded_file(&synthetic::profile());
    assert_eq!(profcheck::check(&request), [""; 0]);
}

#[test]
fn a_file_has_the_counts_of_the_model() {
    let profile = synthetic::profile();
    let mut counts = Counts::new();
    add_counts(&decoded_file(&profile), &mut counts);
    assert_eq!(counts, counts_of_model(&profile));
}

#[test]
fn samples_that_differ_in_nothing_are_one_sample() {
    let request = decoded_file(&synthetic::profile());
    let samples = &request.resource_profiles[0].scope_profiles[0].profiles[0].samples;
    let merged: Vec<_> = samples
        .iter()
        .map(|sample| &sample.timestamps_unix_nano)
        .filter(|timestamps| timestamps[0] == synthetic::START_WALL_NS + 60)
        .collect();
    assert_eq!(merged.len(), 1);
    assert_eq!(
        *merged[0],
        [60, 70, 80].map(|at| synthetic::START_WALL_NS + at)
    );
}

#[test]
fn a_profile_without_samples_is_no_request() {
    let profile = Profile {
        samples: Vec::new(),
        ..synthetic::profile()
    };
    assert!(requests(&profile, &Host::default()).is_empty());
    assert!(file("otlp", &profile).is_empty());
    let json = String::from_utf8(file("otlp-json", &profile)).unwrap();
    assert_eq!(otlp_json::parse(&json).unwrap(), Default::default());
}

#[test]
fn json_says_the_same_as_protobuf() {
    let profile = synthetic::profile();
    let json = String::from_utf8(file("otlp-json", &profile)).unwrap();
    assert_eq!(otlp_json::parse(&json).unwrap(), decoded_file(&profile));
}

#[test]
fn json_ids_are_hexadecimal_and_long_integers_are_strings() {
    let json = file("otlp-json", &synthetic::profile());
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let links = &json["dictionary"]["linkTable"];
    assert_eq!(links[0]["traceId"], "");
    assert_eq!(links[1]["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(links[1]["spanId"], "00f067aa0ba902b7");
    let profile = &json["resourceProfiles"][0]["scopeProfiles"][0]["profiles"][0];
    assert_eq!(profile["timeUnixNano"], "1790000000000000123");
    assert_eq!(profile["durationNano"], "10000000000");
    assert_eq!(profile["period"], "10101010");
    assert_eq!(
        profile["samples"][0]["timestampsUnixNano"][0],
        "1790000000000000123"
    );
    assert_eq!(profile["samples"][0]["stackIndex"], 1);
    assert_eq!(json["dictionary"]["mappingTable"][1]["memoryStart"], "4096");
}

/// Many distinct stacks with long names, and one sample larger than a request.
fn large_profile() -> Profile {
    let mut profile = synthetic::profile();
    let leaf = profile.frames[0].clone();
    for n in 0..20_000_u32 {
        let mut frame = leaf.clone();
        frame.lines = vec![Line {
            function: format!("function_{n}_{}", "x".repeat(300)).into(),
            ..leaf.lines[0].clone()
        }];
        profile.stacks.push(Stack {
            frames: vec![hotspan::model::FrameIdx(profile.frames.len() as u32)],
            is_rooted: true,
        });
        profile.frames.push(frame);
        profile.samples.push(Sample {
            stack: StackIdx(profile.stacks.len() as u32 - 1),
            ..profile.samples[n as usize % 8].clone()
        });
    }
    let start = synthetic::START_WALL_NS;
    profile.samples[0].timestamps_wall_ns = (start..start + 600_000).collect();
    profile
}

#[test]
fn a_large_profile_is_split_into_requests_that_stand_alone() {
    let profile = large_profile();
    let requests = requests(&profile, &Host::this_one());
    let mut counts = Counts::new();
    for request in &requests {
        assert!(request.encoded_len() <= REQUEST_BYTES);
        assert_eq!(profcheck::check(request), [""; 0]);
        add_counts(request, &mut counts);
    }
    assert_eq!(counts, counts_of_model(&profile));
    let whole = decoded_file(&profile).encoded_len();
    let fewest = whole.div_ceil(REQUEST_BYTES);
    assert!(
        (fewest..=fewest + 1).contains(&requests.len()),
        "{} requests for {whole} bytes",
        requests.len()
    );
}

#[test]
fn the_kernel_and_the_libraries_have_one_mapping_each() {
    let request = decoded_file(&synthetic::profile());
    let dictionary = request.dictionary.unwrap();
    let mut names: Vec<_> = dictionary.mapping_table[1..]
        .iter()
        .map(|m| &*dictionary.string_table[m.filename_strindex as usize])
        .collect();
    names.sort_unstable();
    // The server has two executable segments; the library of both containers is one file.
    assert_eq!(
        names,
        ["[kernel]", "helper", "libshared.so", "server", "server"]
    );
    assert_eq!(
        otlp_profiles::SCHEMA_URL,
        request.resource_profiles[0].schema_url
    );
}
