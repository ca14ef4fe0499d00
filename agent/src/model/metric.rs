//! Metrics: numbers that are collected again and again, and read by every exporter.
//!
//! Shapes and words are those of the OpenTelemetry metrics data model.

use std::sync::Arc;

use super::TraceLink;

/// What a metric is; its points say how much.
#[derive(Debug, PartialEq, Eq)]
pub struct Instrument {
    /// Name: a semantic convention's, or one of our own that begins with `hotspan.`.
    pub name: &'static str,
    /// Unit by UCUM: `s`, `By`, `1`, `{operation}`.
    pub unit: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// How points are to be understood.
    pub kind: Kind,
}

impl Instrument {
    /// A sum that only grows.
    #[must_use]
    pub const fn counter(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            unit,
            description,
            kind: Kind::Counter,
        }
    }

    /// A sum that may shrink.
    #[must_use]
    pub const fn up_down(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            unit,
            description,
            kind: Kind::UpDownCounter,
        }
    }

    /// A value that is not to be summed.
    #[must_use]
    pub const fn gauge(name: &'static str, unit: &'static str, description: &'static str) -> Self {
        Self {
            name,
            unit,
            description,
            kind: Kind::Gauge,
        }
    }

    /// A distribution.
    #[must_use]
    pub const fn histogram(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            unit,
            description,
            kind: Kind::Histogram,
        }
    }
}

/// A number that may be unknown.
pub trait Measured {
    /// The number.
    fn number(self) -> Option<Number>;
}

impl<N: Into<Number>> Measured for N {
    fn number(self) -> Option<Number> {
        Some(self.into())
    }
}

impl<N: Into<Number>> Measured for Option<N> {
    fn number(self) -> Option<Number> {
        self.map(Into::into)
    }
}

/// What a source says of one series: a total since it began, or a value as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Of what metric; no histogram.
    pub instrument: &'static Instrument,
    /// Of which series.
    pub attributes: Attributes,
    /// How much.
    pub value: Number,
}

/// Observations of one round, in the order they were made.
#[derive(Clone, Debug, Default)]
pub struct Observations(pub Vec<Observation>);

impl Observations {
    /// Adds what is known; `None` is no observation.
    pub fn add<const LENGTH: usize>(
        &mut self,
        instrument: &'static Instrument,
        attributes: [(&'static str, Value); LENGTH],
        value: impl Measured,
    ) {
        if let Some(value) = value.number() {
            self.0.push(Observation {
                instrument,
                attributes: Attributes::new(attributes),
                value,
            });
        }
    }
}

/// How the points of a metric are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sum that only grows.
    Counter,
    /// A sum that may shrink: sums of it over series make sense.
    UpDownCounter,
    /// A value that is not to be summed.
    Gauge,
    /// A distribution.
    Histogram,
}

/// Whether points tell of all the time since their start, or of the time since the last point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Since the start of the series.
    #[default]
    Cumulative,
    /// Since the last point.
    Delta,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Text.
    Text(Arc<str>),
    /// A whole number.
    Integer(i64),
    /// Yes or no.
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

/// What tells the series of a metric apart: sorted by key, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attributes(Vec<(&'static str, Value)>);

impl Attributes {
    /// Of two entries with one key the first is kept.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(key, _)| *key);
        entries.dedup_by_key(|(key, _)| *key);
        Self(entries)
    }

    /// The entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter()
            .find_map(|(name, value)| (name == key).then_some(value))
    }
}

/// A number as it was counted: whole numbers stay whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A whole number.
    Integer(i64),
    /// Any number.
    Float(f64),
}

impl Number {
    /// As a float, which above 2^53 is rounded.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Integer(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    /// The sum, which is whole when both are; it stops at the largest number there is.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Self::Integer(a.saturating_add(b)),
            (a, b) => Self::Float(a.as_f64() + b.as_f64()),
        }
    }

    /// The difference, which is whole when both are.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Self::Integer(a.saturating_sub(b)),
            (a, b) => Self::Float(a.as_f64() - b.as_f64()),
        }
    }

    /// Nothing of the same type.
    #[must_use]
    pub fn zero(self) -> Self {
        self.minus(self)
    }
}

/// The kernel counts in 64 bits without sign. No counter gets beyond 63 in a machine's life; one
/// that claims to stops there.
impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

/// A measurement that belongs to a span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// When it was measured, nanoseconds since the Unix epoch.
    pub time_wall_ns: u64,
    /// What was measured.
    pub value: f64,
    /// The span.
    pub link: TraceLink,
}

/// A distribution over buckets with given limits.
#[derive(Clone, Debug, PartialEq)]
pub struct ExplicitHistogram {
    /// Upper limits, ascending; a value equal to a limit is below it. Beyond the last is one more bucket.
    pub bounds: Arc<[f64]>,
    /// Counts, one more than limits.
    pub counts: Vec<u64>,
    /// Sum of the values.
    pub sum: f64,
    /// The smallest and the largest value, where they are known.
    pub extremes: Option<(f64, f64)>,
}

/// A distribution of values from zero up over buckets that grow by a factor of 2^(2^-scale).
#[derive(Clone, Debug, PartialEq)]
pub struct ExponentialHistogram {
    /// Resolution, from -10 to 20.
    pub scale: i32,
    /// Values that are zero.
    pub zero_count: u64,
    /// Index of the first bucket. Bucket `i` holds values above base^i and up to base^(i+1).
    pub offset: i32,
    /// Counts of the buckets from `offset` on.
    pub counts: Vec<u64>,
    /// Sum of the values.
    pub sum: f64,
    /// The smallest and the largest value, where they are known.
    pub extremes: Option<(f64, f64)>,
}

impl ExplicitHistogram {
    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl ExponentialHistogram {
    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.zero_count + self.counts.iter().sum::<u64>()
    }

    /// The upper limit of the bucket with this index.
    #[must_use]
    pub fn upper_bound(&self, index: i32) -> f64 {
        // One bucket spans 2^(2^-scale): both steps are exact where a limit is a power of two.
        (f64::from(index.saturating_add(1)) * f64::from(-self.scale).exp2()).exp2()
    }
}

/// What a point says.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// One number.
    Number(Number),
    /// A distribution with given limits.
    Explicit(ExplicitHistogram),
    /// A distribution with limits that grow.
    Exponential(ExponentialHistogram),
}

/// The state of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What tells it from other series of the metric.
    pub attributes: Attributes,
    /// Since when it counts, nanoseconds since the Unix epoch.
    pub start_wall_ns: u64,
    /// Until when.
    pub time_wall_ns: u64,
    /// How much.
    pub data: Data,
    /// Measurements with a span, since the last collection.
    pub exemplars: Vec<Exemplar>,
}

/// All series of one metric at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// What it is.
    pub instrument: &'static Instrument,
    /// What points of counters and histograms tell of.
    pub temporality: Temporality,
    /// One for each series.
    pub points: Vec<Point>,
}

/// Who the metrics are of: the resource, as attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Name of the service: `service.name`.
    pub service_name: Arc<str>,
    /// Which of its instances: `service.instance.id`.
    pub service_instance: Arc<str>,
    /// More attributes.
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
}
