use std::io::Write as _;

use serde_json::json;

use super::*;
use crate::export::{FORMATS, Options, fixture, folded::fold};

/// What comes back of folded text.
fn folded_text(saved: &Saved) -> String {
    let mut out = Vec::new();
    saved.folded.write_text(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn written(format: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let format = crate::export::format_of_name(format).unwrap();
    (format.write)(&fixture::mixed(), &Options::default(), &mut bytes).unwrap();
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    read_bounded(flate2::read::GzDecoder::new(bytes)).unwrap()
}

/// An OTLP document as a Collector writes it: zeros absent, 64-bit integers as text, attributes
/// of the resource as references to the string table.
fn otlp_json() -> serde_json::Value {
    json!({
        "resourceProfiles": [{
            "resource": {"attributes": [
                {"keyStrindex": 1, "value": {"stringValueStrindex": 2}},
                {"key": "process.pid", "value": {"intValue": "7"}},
            ]},
            "scopeProfiles": [{"profiles": [{
                "sampleType": {"typeStrindex": 3, "unitStrindex": 4},
                "samples": [
                    {"stackIndex": 1, "timestampsUnixNano": ["1700000000000000001", "1700000000000000002"]},
                    {"stackIndex": 1, "values": ["3"]},
                    {"stackIndex": 2, "attributeIndices": [], "values": [4]},
                ],
                "timeUnixNano": "1700000000000000000",
                "durationNano": "2000000000",
                "periodType": {"typeStrindex": 5, "unitStrindex": 6},
                "period": "10000000",
            }]}],
        }],
        "dictionary": {
            "mappingTable": [{}, {"filenameStrindex": 7}],
            "locationTable": [
                {},
                {"mappingIndex": 1, "address": "4096", "lines": [{"functionIndex": 2}, {"functionIndex": 1}]},
                {"mappingIndex": 1, "address": "74565"},
                {"address": "64", "lines": [{"functionIndex": 3}], "attributeIndices": [1]},
            ],
            "functionTable": [
                {}, {"nameStrindex": 8}, {"nameStrindex": 9}, {"systemNameStrindex": 10},
            ],
            "stringTable": ["", "process.executable.name", "srv", "samples", "count", "cpu",
                "nanoseconds", "/usr/bin/srv", "outer", "inner", "vfs_read", "profile.frame.type",
                "kernel"],
            "attributeTable": [{}, {"keyStrindex": 11, "value": {"stringValue": "kernel"}}],
            "stackTable": [{}, {"locationIndices": [3, 1]}, {"locationIndices": [2, 99]}],
        },
    })
}

const OTLP_TEXT: &str = "\
srv;[unknown];srv+0x12345 4
srv;outer;inner_[i];vfs_read_[k] 5
";

#[test]
fn our_folded_text_and_pprof_come_back_as_they_were() {
    let original = fold(&fixture::mixed(), &Options::default());
    for bytes in [
        written("folded"),
        written("pprof"),
        gunzip(&written("pprof")),
    ] {
        let saved = parse(&bytes).unwrap();
        assert_eq!(saved.folded.stacks, original.stacks);
        assert_eq!(saved.unit, Unit::Samples);
    }
    // What a frame is comes back too, as far as text can tell.
    let saved = parse(&written("folded")).unwrap();
    for (element, kind) in [
        ("api", ElementKind::Process),
        ("vfs_read_[k]", ElementKind::Kernel),
        ("main.main", ElementKind::Go),
    ] {
        assert_eq!(saved.folded.kinds[element], kind);
    }
}

#[test]
fn a_pprof_file_says_how_long_and_how_often() {
    let saved = parse(&written("pprof")).unwrap();
    assert_eq!(saved.facts(), "1.0 s at 100 Hz · 21 samples");
}

#[test]
fn our_speedscope_comes_back_in_nanoseconds() {
    let saved = parse(&written("speedscope")).unwrap();
    assert_eq!(saved.unit, Unit::Nanoseconds);
    assert_eq!(
        folded_text(&saved),
        "\
api;[no unwind table];libc.so.6+0x29d90 20000000
api;_start;main;api::serve;core::iter::fold;api::parse 70000000
api;_start;main;api::serve;do_syscall_64_[k];ksys_read_[k];vfs_read_[k] 30000000
gosrv;runtime.main;main.main 50000000
node;_start;LazyCompile:~render app.js:10_[j] 40000000
"
    );
}

#[test]
fn otlp_json_with_dictionary_references_is_read() {
    let saved = parse(otlp_json().to_string().as_bytes()).unwrap();
    assert_eq!(folded_text(&saved), OTLP_TEXT);
    assert_eq!(saved.facts(), "2.0 s at 100 Hz · 9 samples");
}

#[test]
fn otlp_documents_on_lines_add_up() {
    let lines = format!("{}\n{}\n", otlp_json(), otlp_json());
    let saved = parse(lines.as_bytes()).unwrap();
    assert_eq!(saved.folded.total(), 18);
}

/// The same content as [`otlp_json`], in the generated messages.
fn otlp_protobuf() -> Vec<u8> {
    use hotspan_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
    use hotspan_proto::otlp::profiles::{
        Function, KeyValueAndUnit, Line, Location, Mapping, Profile, ProfilesDictionary,
        ResourceProfiles, Sample, ScopeProfiles, Stack, ValueType,
    };
    use hotspan_proto::otlp::profiles_service::ExportProfilesServiceRequest;
    use hotspan_proto::otlp::resource::Resource;
    use prost::Message as _;

    let json = otlp_json();
    let strings = json["dictionary"]["stringTable"].as_array().unwrap();
    let function = |name_strindex, system_name_strindex| Function {
        name_strindex,
        system_name_strindex,
        ..Default::default()
    };
    let line = |function_index| Line {
        function_index,
        ..Default::default()
    };
    let sample = |stack_index, values, timestamps_unix_nano| Sample {
        stack_index,
        values,
        timestamps_unix_nano,
        ..Default::default()
    };
    let value_type = |type_strindex, unit_strindex| {
        Some(ValueType {
            type_strindex,
            unit_strindex,
        })
    };
    let text = |value: Value| Some(AnyValue { value: Some(value) });
    let dictionary = ProfilesDictionary {
        mapping_table: vec![
            Mapping::default(),
            Mapping {
                filename_strindex: 7,
                ..Default::default()
            },
        ],
        location_table: vec![
            Location::default(),
            Location {
                mapping_index: 1,
                address: 4096,
                lines: vec![line(2), line(1)],
                attribute_indices: vec![],
            },
            Location {
                mapping_index: 1,
                address: 74565,
                ..Default::default()
            },
            Location {
                address: 64,
                lines: vec![line(3)],
                attribute_indices: vec![1],
                ..Default::default()
            },
        ],
        function_table: vec![
            Function::default(),
            function(8, 0),
            function(9, 0),
            function(0, 10),
        ],
        string_table: strings
            .iter()
            .map(|s| s.as_str().unwrap().to_owned())
            .collect(),
        attribute_table: vec![
            KeyValueAndUnit::default(),
            KeyValueAndUnit {
                key_strindex: 11,
                value: text(Value::StringValueStrindex(12)),
                unit_strindex: 0,
            },
        ],
        stack_table: vec![
            Stack::default(),
            Stack {
                location_indices: vec![3, 1],
            },
            Stack {
                location_indices: vec![2, 99],
            },
        ],
        ..Default::default()
    };
    let profile = Profile {
        sample_type: value_type(3, 4),
        samples: vec![
            sample(1, vec![], vec![1, 2]),
            sample(1, vec![3], vec![]),
            sample(2, vec![4, -9], vec![]),
        ],
        duration_nano: 2_000_000_000,
        period_type: value_type(5, 6),
        period: 10_000_000,
        ..Default::default()
    };
    let resource = Resource {
        attributes: vec![KeyValue {
            key: "process.executable.name".to_owned(),
            value: text(Value::StringValue("srv".to_owned())),
            key_strindex: 0,
        }],
        ..Default::default()
    };
    let request = ExportProfilesServiceRequest {
        resource_profiles: vec![ResourceProfiles {
            resource: Some(resource),
            scope_profiles: vec![ScopeProfiles {
                profiles: vec![profile],
                ..Default::default()
            }],
            ..Default::default()
        }],
        dictionary: Some(dictionary),
    };
    request.encode_to_vec()
}

#[test]
fn otlp_protobuf_is_read() {
    let saved = parse(&otlp_protobuf()).unwrap();
    assert_eq!(folded_text(&saved), OTLP_TEXT);
    assert_eq!(saved.facts(), "2.0 s at 100 Hz · 9 samples");
}

#[test]
fn the_text_of_other_profilers_is_read() {
    let check = |text: &str, expected: &str| {
        assert_eq!(folded_text(&parse(text.as_bytes()).unwrap()), expected);
    };
    // stackcollapse-perf.pl --kernel, with a comment and Windows line ends.
    check(
        "# cmdline: perf record\r\nbash;main;[libc.so.6];vfs_read_[k] 2\r\nbash;main 1\r\n",
        "bash;main 1\nbash;main;[libc.so.6];vfs_read_[k] 2\n",
    );
    check("a;b 1\na;b 2\n\n", "a;b 3\n");
    check("main 2.6\n", "main 3\n");
    check("a;;b 1\n", "a;[unknown];b 1\n");
    check("a;caf\u{e9} 1\n", "a;caf\u{e9} 1\n");
}

#[test]
fn what_is_no_profile_is_told_apart() {
    let check = |bytes: &[u8], expected: &str| {
        let error = parse(bytes).unwrap_err();
        assert_eq!(format!("{error:?}"), expected, "{bytes:?}");
    };
    check(b"", "NotAProfile");
    check(
        b"Dear reader,\nthis is a letter\nof page 3\n",
        "NotAProfile",
    );
    check(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0], "NotAProfile");
    check(b"{}", "NotAProfile");
    check(b"{\"a\": [1, 2]}", "NotAProfile");
    check(b"<?xml version=\"1.0\"?><svg/>", "Picture");
    check(b"PERFILE2....", "PerfData");
    check(&[0x1f, 0x8b, 8, 0], "DamagedGzip");
    check(b"a;b 0\n", "Empty");
    check(b"a;b 99999999999999999999\n", "TooMuch");
    let evented = json!({"shared": {"frames": []}, "profiles": [{"type": "evented"}]});
    check(evented.to_string().as_bytes(), "Evented");
    let deep = [b'['; 100_000];
    check(&deep, "NotAProfile");
    check(&[b"{\"a\":".as_slice(), &deep].concat(), "NotAProfile");
}

#[test]
fn a_gzip_bomb_is_refused() {
    let bomb = gzip(&vec![b'a'; MAX_BYTES as usize + 1]);
    assert!(bomb.len() < 1 << 20);
    assert!(matches!(parse(&bomb), Err(Error::TooLarge)));
}

#[test]
fn stacks_that_unfold_without_end_are_refused() {
    let name = "f".repeat(1 << 20);
    let frames = json!([{"name": name}]);
    let stack = vec![0; 1000];
    let profiles = json!([{"type": "sampled", "samples": [stack]}]);
    let file = json!({"shared": {"frames": frames}, "profiles": profiles});
    let result = parse(file.to_string().as_bytes());
    assert!(matches!(result, Err(Error::TooLarge)));
}

#[test]
fn a_stack_is_cut_at_a_depth_no_profiler_reaches() {
    let text = format!("{}z 1\n", "a;".repeat(2 * MAX_DEPTH));
    let saved = parse(text.as_bytes()).unwrap();
    let stack = saved.folded.stacks.keys().next().unwrap();
    assert_eq!(stack.split(';').count(), MAX_DEPTH + 1);
    assert!(stack.ends_with("a;[truncated]"));
}

#[test]
fn weights_that_are_no_counts_weigh_nothing() {
    let frames = json!([{"name": "f"}, {"name": "g"}]);
    let file = |weights| {
        let profile = json!({"type": "sampled", "unit": "seconds", "samples": [[0], [1], [7]], "weights": weights});
        let file = json!({"shared": {"frames": frames}, "profiles": [profile]});
        parse(file.to_string().as_bytes())
    };
    let saved = file(json!([-1.0, 0.25, 1e-9])).unwrap();
    assert_eq!(folded_text(&saved), "[unknown] 1\ng 250000000\n");
    assert!(matches!(file(json!([0, 0, 0])), Err(Error::Empty)));
    assert!(matches!(file(json!([1e300, 0, 0])), Err(Error::TooMuch)));
}

#[test]
fn foreign_pprof_values_are_chosen_as_pprof_does() {
    use hotspan_proto::pprof::{Line, Location, Mapping, Message as _, Profile, Sample, ValueType};
    let mut profile = Profile {
        string_table: [
            "",
            "alloc_objects",
            "count",
            "inuse_space",
            "bytes",
            "/bin/a.out",
        ]
        .map(str::to_owned)
        .to_vec(),
        sample_type: vec![ValueType { ty: 1, unit: 2 }, ValueType { ty: 3, unit: 4 }],
        mapping: vec![Mapping {
            id: 9,
            memory_start: 0x4000,
            file_offset: 0x1000,
            filename: 5,
            ..Default::default()
        }],
        location: vec![
            Location {
                id: 70,
                mapping_id: 9,
                address: 0x4010,
                ..Default::default()
            },
            Location {
                id: 71,
                address: 0x99,
                line: vec![Line {
                    function_id: 404,
                    line: 0,
                }],
                ..Default::default()
            },
        ],
        sample: vec![Sample {
            location_id: vec![70, 71, 72],
            value: vec![1, 4096],
            label: vec![],
        }],
        ..Default::default()
    };
    let saved = parse(&profile.encode_to_vec()).unwrap();
    assert_eq!(folded_text(&saved), "[unknown];a.out+0x1010 4096\n");
    assert_eq!(saved.amount(), "4,096 bytes");
    profile.default_sample_type = 1;
    let saved = parse(&profile.encode_to_vec()).unwrap();
    assert_eq!(saved.amount(), "1 alloc_objects");
    profile.sample[0].value = vec![-5];
    assert!(matches!(parse(&profile.encode_to_vec()), Err(Error::Empty)));
}

#[test]
fn pprof_of_others_keeps_its_process_names() {
    use hotspan_proto::pprof::{Label, Location, Message as _, Profile, Sample, ValueType};
    for key in ["comm", "process.name"] {
        let profile = Profile {
            string_table: ["", "samples", "count", key, "nginx"]
                .map(str::to_owned)
                .to_vec(),
            sample_type: vec![ValueType { ty: 1, unit: 2 }],
            location: vec![Location {
                id: 1,
                address: 0x10,
                ..Default::default()
            }],
            sample: vec![Sample {
                location_id: vec![1],
                value: vec![3],
                label: vec![Label {
                    key: 3,
                    str: 4,
                    ..Default::default()
                }],
            }],
            ..Default::default()
        };
        let saved = parse(&profile.encode_to_vec()).unwrap();
        assert_eq!(folded_text(&saved), "nginx;0x10 3\n");
    }
}

/// Small valid files of every kind.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = FORMATS.iter().map(|format| written(format.name)).collect();
    seeds.extend([
        gunzip(&written("pprof")),
        otlp_json().to_string().into_bytes(),
        otlp_protobuf(),
    ]);
    // A picture is refused by its first bytes.
    seeds.retain(|seed| !seed.starts_with(b"<?xml"));
    seeds
}

/// Reads bytes and draws what they hold; must return, whatever they are.
fn survives(bytes: &[u8]) {
    if let Ok(saved) = parse(bytes) {
        let _ = saved.facts();
        for stack in saved.folded.stacks.keys() {
            assert!(
                !stack.contains(['\n', '\0']) && !stack.is_empty(),
                "{stack:?}"
            );
        }
    }
}

#[test]
fn no_truncation_of_a_file_makes_a_reader_panic() {
    for seed in seeds() {
        for end in 0..seed.len() {
            survives(&seed[..end]);
        }
    }
}

#[test]
fn no_changed_byte_makes_a_reader_panic() {
    for seed in seeds() {
        let mut bytes = seed.clone();
        for at in 0..seed.len() {
            for change in [0x01, 0x80, 0xff, seed[at]] {
                bytes[at] = seed[at] ^ change;
                survives(&bytes);
            }
            bytes[at] = seed[at];
        }
    }
}
