//! Metrics of every kind, for the tests of the exporters.

use crate::model::{
    Attributes, Data, Exemplar, ExplicitHistogram, ExponentialHistogram, Instrument, Kind, Metric,
    Number, Point, Resource, Temporality, TraceLink, Value,
};

static CPU: Instrument = Instrument {
    name: "system.cpu.time",
    unit: "s",
    description: "Time, by \"mode\"\nand more \\.",
    kind: Kind::Counter,
};
static CLASH: Instrument = Instrument {
    name: "system.cpu.time.seconds",
    unit: "s",
    description: "",
    kind: Kind::Counter,
};
static MEMORY: Instrument = Instrument {
    name: "system.memory.usage",
    unit: "By",
    description: "Memory.",
    kind: Kind::UpDownCounter,
};
static SHARE: Instrument = Instrument {
    name: "hotspan.share",
    unit: "1",
    description: "A share.",
    kind: Kind::Gauge,
};
static EXPLICIT: Instrument = Instrument {
    name: "hotspan.wait.duration",
    unit: "s",
    description: "Waiting.",
    kind: Kind::Histogram,
};
static EXPONENTIAL: Instrument = Instrument {
    name: "hotspan.export.duration",
    unit: "s",
    description: "Sending.",
    kind: Kind::Histogram,
};

fn metric(instrument: &'static Instrument, attributes: Attributes, data: Data) -> Metric {
    Metric {
        instrument,
        temporality: Temporality::Cumulative,
        points: vec![Point {
            attributes,
            start_wall_ns: 1_000_000_000,
            time_wall_ns: 11_000_000_000,
            data,
            exemplars: Vec::new(),
        }],
    }
}

/// Metrics of every kind; the last has the name of the first.
pub fn metrics() -> Vec<Metric> {
    let text = |key, text: &str| Attributes::new([(key, Value::from(text))]);
    let mut explicit = ExplicitHistogram::new([0.01, 1.0].into());
    let mut exponential = ExponentialHistogram::default();
    for value in [0.01, 0.02, 2.0] {
        explicit.record(value);
    }
    for value in [0.0, 1.0, 2.0, 4.0] {
        exponential.record(value, 1);
    }
    let exemplar = Exemplar {
        time_wall_ns: 10_500_000_000,
        value: 2.0,
        link: TraceLink {
            trace_id: [0xab; 16],
            span_id: [0x01; 8],
        },
    };
    let cpu = Attributes::new([
        ("cpu.mode", Value::from("us\"er\\\n")),
        ("cpu.logical_number", Value::from(3)),
    ]);
    let mut metrics = vec![
        metric(&CPU, cpu, Data::Number(Number::Float(1.5))),
        metric(
            &MEMORY,
            text("system.memory.state", "used"),
            Data::Number(Number::Integer(i64::MAX)),
        ),
        metric(
            &SHARE,
            Attributes::default(),
            Data::Number(Number::Float(1.0)),
        ),
        metric(&EXPLICIT, text("a.b", "x"), Data::Explicit(explicit)),
        metric(
            &EXPONENTIAL,
            text("signal", "metrics"),
            Data::Exponential(exponential),
        ),
        metric(
            &CLASH,
            Attributes::default(),
            Data::Number(Number::Integer(1)),
        ),
    ];
    for metric in &mut metrics[3..5] {
        metric.points[0].exemplars.push(exemplar);
    }
    metrics
}

/// Somebody.
pub fn resource() -> Resource {
    Resource {
        service_name: "hotspan".into(),
        service_instance: "i-1".into(),
        attributes: vec![("deployment.environment.name".into(), "te\"st".into())],
    }
}
