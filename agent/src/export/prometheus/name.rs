//! Names as Prometheus has them.

use crate::model::{Instrument, Kind};

/// Units by UCUM, and what the specification calls them.
const UNITS: &[(&str, &str)] = &[
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("Hz", "hertz"),
    ("Cel", "celsius"),
    ("V", "volts"),
    ("A", "amperes"),
    ("J", "joules"),
    ("W", "watts"),
    ("%", "percent"),
];

/// The unit as a part of a name; `None` for a number of things, `{operation}`.
pub fn unit(instrument: &Instrument) -> Option<String> {
    match instrument.unit {
        "1" => (instrument.kind == Kind::Gauge).then(|| "ratio".to_owned()),
        unit => {
            let (amount, per) = unit.split_once('/').unwrap_or((unit, ""));
            let amount = word(amount)?;
            match word(per) {
                Some(per) => Some(format!("{amount}_per_{}", per.trim_end_matches('s'))),
                None => Some(amount),
            }
        }
    }
}

fn word(unit: &str) -> Option<String> {
    if unit.is_empty() || unit.contains('{') {
        return None;
    }
    let known = UNITS.iter().find(|(short, _)| *short == unit);
    Some(known.map_or_else(|| sanitize(unit, false), |(_, long)| (*long).to_owned()))
}

/// The name of a metric, with its unit, and `_total` for a counter.
pub fn family_name(instrument: &Instrument) -> String {
    let mut name = sanitize(instrument.name, true);
    let is_counter = instrument.kind == Kind::Counter;
    if is_counter && let Some(stem) = name.strip_suffix("_total") {
        name.truncate(stem.len());
    }
    if let Some(unit) = unit(instrument)
        && !name.ends_with(&format!("_{unit}"))
    {
        name.push('_');
        name.push_str(&unit);
    }
    if is_counter {
        name.push_str("_total");
    }
    name
}

/// The name of a label.
pub fn label_name(key: &str) -> String {
    let name = sanitize(key, false);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return format!("key_{name}");
    }
    name
}

/// Puts an underscore for each run of what a name cannot hold.
fn sanitize(text: &str, allows_colon: bool) -> String {
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        let is_allowed = c.is_ascii_alphanumeric() || (allows_colon && c == ':');
        if is_allowed {
            name.push(c);
        } else if !name.ends_with('_') {
            name.push('_');
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_become_part_of_names() {
        for (name, unit, kind, expected) in [
            (
                "system.cpu.time",
                "s",
                Kind::Counter,
                "system_cpu_time_seconds_total",
            ),
            (
                "system.network.io",
                "By",
                Kind::Counter,
                "system_network_io_bytes_total",
            ),
            (
                "system.cpu.utilization",
                "1",
                Kind::Gauge,
                "system_cpu_utilization_ratio",
            ),
            ("a.count", "1", Kind::UpDownCounter, "a_count"),
            ("a.b", "{operation}", Kind::Counter, "a_b_total"),
            ("a.b", "By/s", Kind::Gauge, "a_b_bytes_per_second"),
            ("a..b", "Hz", Kind::Gauge, "a_b_hertz"),
            ("a.seconds", "s", Kind::Gauge, "a_seconds"),
            ("a.total", "s", Kind::Counter, "a_seconds_total"),
        ] {
            let instrument = Instrument {
                name,
                unit,
                description: "",
                kind,
            };
            assert_eq!(family_name(&instrument), expected);
        }
        assert_eq!(label_name("cpu.mode"), "cpu_mode");
        assert_eq!(label_name("9p"), "key_9p");
    }
}
