//! The scrape page: Prometheus' text format 0.0.4, and OpenMetrics 1.0 for who asks for it.
//!
//! In: [`Metric`]s, cumulative. Out: a page, and the answer to a request for it. Accepting
//! connections is the pipeline's work.
//!
//! Names are made as the specification's "Prometheus and OpenMetrics Compatibility" says: the unit
//! becomes a part of the name, counters end with `_total`. A second metric that gets the name of
//! another is left out, and counted. Exponential histograms become classic ones, with the limits
//! that their buckets have.

#[cfg(test)]
pub mod fixture;
mod http;
mod name;

use std::collections::BTreeSet;
use std::fmt::Write;

use super::otlp_profiles::Host;
use crate::model::{Data, Exemplar, Kind, Metric, Number, Point, Resource, Value};
pub use http::{Page, answer, serve};
use name::{family_name, label_name};

/// One of the two text formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, 0.0.4.
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that an `Accept` header prefers.
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        let (mut classic, mut open) = (0.0_f64, 0.0_f64);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut is_known) = (1.0, true);
            for part in parts {
                match part.split_once('=') {
                    Some(("q", value)) => quality = value.parse().unwrap_or(0.0),
                    Some(("version", value)) => {
                        is_known = matches!(value.trim_matches('"'), "0.0.1" | "1.0.0" | "0.0.4");
                    }
                    _ => {}
                }
            }
            match &*kind {
                "application/openmetrics-text" if is_known => open = open.max(quality),
                "text/plain" | "text/*" | "*/*" => classic = classic.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= classic {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// What to call it in `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes the page, and tells how many metrics were left out because their names collide.
#[must_use]
pub fn page(metrics: &[Metric], resource: &Resource, host: &Host, format: Format) -> (String, u64) {
    let mut writer = Writer {
        out: String::with_capacity(64 << 10),
        format,
    };
    writer.target_info(resource, host);
    let mut seen = BTreeSet::from(["target_info".to_owned()]);
    let mut collisions = 0;
    for metric in metrics {
        let name = family_name(metric.instrument);
        if !seen.insert(name.clone()) {
            collisions += 1;
            continue;
        }
        writer.family(&name, metric);
    }
    if format == Format::OpenMetrics {
        writer.out.push_str("# EOF\n");
    }
    (writer.out, collisions)
}

struct Writer {
    out: String,
    format: Format,
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {{ let _ = write!($out, $($text)*); }};
}

impl Writer {
    fn target_info(&mut self, resource: &Resource, host: &Host) {
        let (family, kind) = match self.format {
            Format::Classic => ("target_info", "gauge"),
            Format::OpenMetrics => ("target", "info"),
        };
        put!(
            self.out,
            "# HELP {family} Target metadata\n# TYPE {family} {kind}\n"
        );
        let entries = resource.entries(host);
        let labels = labels(
            entries
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned())),
        );
        put!(self.out, "target_info{{{labels}}} 1\n");
    }

    fn family(&mut self, name: &str, metric: &Metric) {
        let instrument = metric.instrument;
        let kind = match instrument.kind {
            Kind::Counter => "counter",
            Kind::UpDownCounter | Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // OpenMetrics names the family of a counter without the ending of its samples.
        let family = match (self.format, instrument.kind) {
            (Format::OpenMetrics, Kind::Counter) => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        let help = escape_help(instrument.description, self.format);
        put!(self.out, "# HELP {family} {help}\n# TYPE {family} {kind}\n");
        if self.format == Format::OpenMetrics
            && let Some(unit) =
                name::unit(instrument).filter(|unit| family.ends_with(unit.as_str()))
        {
            put!(self.out, "# UNIT {family} {unit}\n");
        }
        for point in &metric.points {
            self.point(name, point);
        }
    }

    fn point(&mut self, name: &str, point: &Point) {
        let mut entries: Vec<_> = point
            .attributes
            .iter()
            .map(|(key, value)| (key, text(value)))
            .collect();
        entries.push(("otel_scope_name", "hotspan".to_owned()));
        entries.push(("otel_scope_version", env!("CARGO_PKG_VERSION").to_owned()));
        let labels = labels(entries.into_iter());
        match &point.data {
            Data::Number(number) => {
                put!(self.out, "{name}{{{labels}}} {}", number_text(*number));
                if name.ends_with("_total") {
                    self.exemplar(point.exemplars.last());
                }
                self.out.push('\n');
            }
            Data::Explicit(histogram) => {
                let limits = histogram.bounds.iter().copied().chain([f64::INFINITY]);
                let buckets = limits.zip(histogram.counts.iter().copied());
                self.histogram(name, &labels, buckets, histogram.sum, point);
            }
            Data::Exponential(histogram) => {
                let above = (histogram.offset..).zip(&histogram.counts);
                let above = above
                    .filter(|(_, count)| **count > 0)
                    .map(|(at, count)| (histogram.upper_bound(at), *count));
                let buckets = [(0.0, histogram.zero_count)].into_iter().chain(above);
                let buckets = buckets.chain([(f64::INFINITY, 0)]);
                self.histogram(name, &labels, buckets, histogram.sum, point);
            }
        }
    }

    fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: f64,
        point: &Point,
    ) {
        let (mut below, mut count) = (f64::NEG_INFINITY, 0_u64);
        for (bound, more) in buckets {
            count += more;
            let le = float_text(bound);
            put!(self.out, "{name}_bucket{{{labels},le=\"{le}\"}} {count}");
            let is_inside =
                |exemplar: &&Exemplar| exemplar.value > below && exemplar.value <= bound;
            self.exemplar(point.exemplars.iter().rfind(is_inside));
            self.out.push('\n');
            below = bound;
        }
        put!(self.out, "{name}_sum{{{labels}}} {}\n", float_text(sum));
        put!(self.out, "{name}_count{{{labels}}} {count}\n");
    }

    fn exemplar(&mut self, exemplar: Option<&Exemplar>) {
        let Some(exemplar) = exemplar.filter(|_| self.format == Format::OpenMetrics) else {
            return;
        };
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let (trace, span) = (hex(&exemplar.link.trace_id), hex(&exemplar.link.span_id));
        let value = float_text(exemplar.value);
        let seconds = exemplar.time_wall_ns / 1_000_000_000;
        let millis = exemplar.time_wall_ns / 1_000_000 % 1_000;
        put!(
            self.out,
            " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {value} {seconds}.{millis:03}"
        );
    }
}

/// `key="value",…`. Keys that become the same have their values put together, by the order of
/// the keys, as the specification has it.
fn labels<'a>(entries: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut labels: Vec<(String, String)> = Vec::new();
    for (key, value) in entries {
        let key = label_name(key);
        match labels.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => put!(known, ";{value}"),
            None => labels.push((key, value)),
        }
    }
    let mut out = String::new();
    for (key, value) in labels {
        let comma = if out.is_empty() { "" } else { "," };
        put!(out, "{comma}{key}=\"{}\"", escape_label(&value));
    }
    out
}

fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
    }
}

fn escape_label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn escape_help(help: &str, format: Format) -> String {
    let escaped = help.replace('\\', "\\\\").replace('\n', "\\n");
    match format {
        Format::Classic => escaped,
        Format::OpenMetrics => escaped.replace('"', "\\\""),
    }
}

fn number_text(number: Number) -> String {
    match number {
        Number::Integer(number) => number.to_string(),
        Number::Float(number) => float_text(number),
    }
}

fn float_text(number: f64) -> String {
    if number == f64::INFINITY {
        return "+Inf".to_owned();
    }
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: Format, golden: &str) {
        let host = Host {
            name: "box".into(),
            arch: "amd64",
        };
        let (page, collisions) = page(&fixture::metrics(), &fixture::resource(), &host, format);
        let page = page.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        assert_eq!(page, golden, "{page}");
        assert_eq!(collisions, 1);
    }

    #[test]
    fn the_classic_page() {
        check(Format::Classic, include_str!("golden.txt"));
    }

    #[test]
    fn the_openmetrics_page() {
        check(Format::OpenMetrics, include_str!("golden.openmetrics.txt"));
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=2.0.0, text/plain",
                Format::Classic,
            ),
            (
                "application/openmetrics-text;q=0.1,text/plain",
                Format::Classic,
            ),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("text/html,*/*;q=0.8", Format::Classic),
            ("", Format::Classic),
            (";;q=,=,", Format::Classic),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{accept}");
        }
    }
}
