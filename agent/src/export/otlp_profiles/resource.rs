//! Who a profile is of: the resource attributes of a process.

use hotspan_proto::otlp::{
    common::{AnyValue, KeyValue, any_value::Value},
    resource::Resource,
};

use crate::model::Process;

/// The machine the samples were taken on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// `host.name`; empty when unknown.
    pub name: String,
    /// `host.arch`, in the words of the semantic conventions.
    pub arch: &'static str,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn this_one() -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            name: name.trim_end().to_owned(),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }
}

/// The resource of one process.
pub(super) fn of_process(process: &Process, host: &Host) -> Resource {
    let exe_name = process
        .exe
        .as_deref()
        .and_then(|path| path.rsplit('/').find(|part| !part.is_empty()));
    let mut attributes = vec![
        // Without an executable, as in a kernel thread, the conventions want the bare word.
        text(
            "service.name",
            &exe_name.map_or_else(
                || "unknown_service".to_owned(),
                |name| format!("unknown_service:{name}"),
            ),
        ),
        attribute("process.pid", Value::IntValue(i64::from(process.pid))),
        text("os.type", "linux"),
        text("host.arch", host.arch),
        text("telemetry.sdk.name", "hotspan"),
        text("telemetry.sdk.language", "rust"),
        text("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    let optional = [
        ("process.executable.path", process.exe.as_deref()),
        ("process.executable.name", exe_name),
        ("container.id", process.container_id.as_deref()),
        (
            "host.name",
            Some(&*host.name).filter(|name| !name.is_empty()),
        ),
    ];
    attributes.extend(
        optional
            .into_iter()
            .filter_map(|(key, value)| Some(text(key, value?))),
    );
    if let Some(start) = iso_8601(process.start_wall_ns) {
        attributes.push(text("process.creation.time", &start));
    }
    Resource {
        attributes,
        ..Default::default()
    }
}

/// `2023-11-21T09:25:34.853Z`; `None` for 0, which stands for unknown.
fn iso_8601(wall_ns: u64) -> Option<String> {
    let millis = i64::try_from(wall_ns / 1_000_000).ok()?;
    let time = jiff::Timestamp::from_millisecond(millis).ok()?;
    (wall_ns != 0).then(|| format!("{time:.3}"))
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(resource: &Resource, key: &str) -> Option<Value> {
        let mut found = resource.attributes.iter().filter(|kv| kv.key == key);
        let value = found.next()?.value.clone()?.value;
        assert!(found.next().is_none(), "{key} is there twice");
        value
    }

    fn string(text: &str) -> Option<Value> {
        Some(Value::StringValue(text.to_owned()))
    }

    #[test]
    fn a_process_is_named_after_its_executable() {
        let process = Process {
            pid: 42,
            name: "renamed".into(),
            exe: Some("/usr/sbin/nginx".into()),
            container_id: Some("c0ffee".into()),
            start_wall_ns: 1_700_558_734_853_999_999,
        };
        let resource = of_process(&process, &Host::this_one());
        let get = |key| value(&resource, key);
        assert_eq!(get("service.name"), string("unknown_service:nginx"));
        assert_eq!(get("process.pid"), Some(Value::IntValue(42)));
        assert_eq!(get("process.executable.path"), string("/usr/sbin/nginx"));
        assert_eq!(get("process.executable.name"), string("nginx"));
        assert_eq!(get("container.id"), string("c0ffee"));
        assert_eq!(
            get("process.creation.time"),
            string("2023-11-21T09:25:34.853Z")
        );
        assert_eq!(get("telemetry.sdk.name"), string("hotspan"));
        assert!(get("host.name").is_some());
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let process = Process {
            pid: 2,
            name: "kthreadd".into(),
            ..Default::default()
        };
        let resource = of_process(&process, &Host::default());
        assert_eq!(value(&resource, "service.name"), string("unknown_service"));
        for key in [
            "process.executable.path",
            "process.executable.name",
            "process.creation.time",
            "container.id",
            "host.name",
        ] {
            assert_eq!(value(&resource, key), None, "{key}");
        }
    }
}
