//! Series: the state of each metric for each set of attributes, within a budget.
//!
//! Values come in two ways. What someone else counts (the kernel) is observed as it is, in rounds: a
//! series that a round does not mention has lost its owner, and ends. What we count ourselves is
//! added, and stays until its owner is said to be gone.
//!
//! A metric has at most as many series as its budget. Further ones are put together in one that
//! has the attribute `otel.metric.overflow=true`: what it counts is right in sum. Values of gauges
//! have no sum; there they are left out, and counted.

use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::model::{
    Attributes, Data, Exemplar, ExplicitHistogram, ExponentialHistogram, Instrument, Kind, Metric,
    Number, Observation, Point, Temporality, Value,
};

/// Series of a metric, the specification's default.
pub const DEFAULT_BUDGET: usize = 2000;

/// Exemplars that a series keeps between two collections.
const MAX_EXEMPLARS: usize = 8;

/// All metrics of one resource.
#[derive(Debug)]
pub struct Series {
    budget: usize,
    /// Since when the sources count that are there in the first round: the host's start.
    origin_wall_ns: u64,
    /// When the last round ended; 0 in the first.
    last_wall_ns: u64,
    round: u64,
    families: IndexMap<&'static str, Family, FxBuildHasher>,
    /// Values that were refused, because they are negative or no number.
    pub refused: u64,
    /// Values of gauges for which there was no room.
    pub left_out: u64,
}

#[derive(Debug)]
struct Family {
    instrument: &'static Instrument,
    cells: IndexMap<Attributes, Cell, FxBuildHasher>,
    /// All for which there was no room, together.
    overflow: Option<Cell>,
    /// Totals of sources that went into `overflow`, so that it grows by what they grow by, and the
    /// round they were seen in.
    beyond: FxHashMap<Attributes, (Number, u64)>,
}

#[derive(Debug)]
struct Cell {
    start_wall_ns: u64,
    data: Data,
    exemplars: Vec<Exemplar>,
    /// The round it was observed in last; `None` for what is added.
    observed: Option<u64>,
}

impl Cell {
    fn new(start_wall_ns: u64, data: Data) -> Self {
        Self {
            start_wall_ns,
            data,
            exemplars: Vec::new(),
            observed: None,
        }
    }

    fn add(&mut self, number: Number) {
        if let Data::Number(sum) = &mut self.data {
            *sum = sum.plus(number);
        }
    }

    fn keep(&mut self, exemplar: Exemplar) {
        if self.exemplars.len() >= MAX_EXEMPLARS {
            self.exemplars.remove(0);
        }
        self.exemplars.push(exemplar);
    }
}

impl Family {
    /// The series with these attributes, or the one for all others when the budget is used up.
    fn cell(
        &mut self,
        budget: usize,
        attributes: Attributes,
        new: impl FnOnce() -> Cell,
    ) -> &mut Cell {
        // One place is kept for the overflow.
        let has_room = self.cells.len() + 1 < budget || self.cells.contains_key(&attributes);
        if has_room {
            self.cells.entry(attributes).or_insert_with(new)
        } else {
            self.overflow.get_or_insert_with(new)
        }
    }

    fn has_room(&self, budget: usize, attributes: &Attributes) -> bool {
        self.cells.contains_key(attributes)
            || (self.cells.len() + 1 < budget && !self.beyond.contains_key(attributes))
    }

    /// Takes in the total of a source for which there is no room.
    fn total_beyond(
        &mut self,
        origin_wall_ns: u64,
        attributes: Attributes,
        total: Number,
        round: u64,
    ) {
        let zero = total.zero();
        let last = self.beyond.insert(attributes, (total, round));
        // One that went back began anew.
        let before = last
            .map(|(before, _)| before)
            .filter(|before| before.as_f64() <= total.as_f64())
            .unwrap_or(zero);
        self.overflow
            .get_or_insert_with(|| Cell::new(origin_wall_ns, Data::Number(zero)))
            .add(total.minus(before));
    }
}

impl Series {
    /// No series yet. `origin_wall_ns` is when the host started.
    #[must_use]
    pub fn new(budget: usize, origin_wall_ns: u64) -> Self {
        Self {
            budget: budget.max(2),
            origin_wall_ns,
            last_wall_ns: 0,
            round: 1,
            families: IndexMap::default(),
            refused: 0,
            left_out: 0,
        }
    }

    fn family(&mut self, instrument: &'static Instrument) -> &mut Family {
        self.families
            .entry(instrument.name)
            .or_insert_with(|| Family {
                instrument,
                cells: IndexMap::default(),
                overflow: None,
                beyond: FxHashMap::default(),
            })
    }

    /// When a series began that was not there in the last round.
    fn start_wall_ns(&self) -> u64 {
        if self.last_wall_ns == 0 {
            self.origin_wall_ns
        } else {
            self.last_wall_ns
        }
    }

    /// Observes what a source says.
    pub fn observe(&mut self, observation: Observation) {
        let Observation {
            instrument,
            attributes,
            value,
        } = observation;
        match instrument.kind {
            Kind::Counter => self.total(instrument, attributes, value),
            _ => self.value(instrument, attributes, value),
        }
    }

    /// Observes what a source has counted since it began.
    pub fn total(
        &mut self,
        instrument: &'static Instrument,
        attributes: Attributes,
        total: Number,
    ) {
        debug_assert_eq!(instrument.kind, Kind::Counter, "{}", instrument.name);
        let (budget, round, start) = (self.budget, self.round, self.start_wall_ns());
        let origin = self.origin_wall_ns;
        let family = self.family(instrument);
        if !family.has_room(budget, &attributes) {
            return family.total_beyond(origin, attributes, total, round);
        }
        let data = Data::Number(total);
        let new = || Cell::new(start, data.clone());
        let cell = family.cells.entry(attributes).or_insert_with(new);
        if let Data::Number(before) = cell.data
            && total.as_f64() < before.as_f64()
        {
            cell.start_wall_ns = start;
        }
        (cell.data, cell.observed) = (data, Some(round));
    }

    /// Observes a value as it is now.
    pub fn value(
        &mut self,
        instrument: &'static Instrument,
        attributes: Attributes,
        value: Number,
    ) {
        debug_assert!(matches!(instrument.kind, Kind::Gauge | Kind::UpDownCounter));
        if !value.as_f64().is_finite() {
            self.refused += 1;
            return;
        }
        let (budget, round, start) = (self.budget, self.round, self.start_wall_ns());
        let family = self.family(instrument);
        if family.has_room(budget, &attributes) {
            let data = Data::Number(value);
            let new = || Cell::new(start, data.clone());
            let cell = family.cells.entry(attributes).or_insert_with(new);
            (cell.data, cell.observed) = (data, Some(round));
        } else if instrument.kind == Kind::Gauge {
            self.left_out += 1;
        } else {
            let new = || Cell::new(start, Data::Number(value.zero()));
            let cell = family.overflow.get_or_insert_with(new);
            cell.observed = Some(round);
            cell.add(value);
        }
    }

    /// Adds to what we count ourselves.
    pub fn add(&mut self, instrument: &'static Instrument, attributes: Attributes, more: Number) {
        let is_counter = instrument.kind == Kind::Counter;
        if !more.as_f64().is_finite() || (is_counter && more.as_f64() < 0.0) {
            self.refused += 1;
            return;
        }
        let (budget, start) = (self.budget, self.start_wall_ns());
        let new = || Cell::new(start, Data::Number(more.zero()));
        self.family(instrument)
            .cell(budget, attributes, new)
            .add(more);
    }

    /// Counts a value in an exponential histogram.
    pub fn record(
        &mut self,
        instrument: &'static Instrument,
        attributes: Attributes,
        value: f64,
        exemplar: Option<Exemplar>,
    ) {
        let mut one = ExponentialHistogram::default();
        if !one.record(value, 1) {
            self.refused += 1;
            return;
        }
        self.merge(instrument, attributes, &Data::Exponential(one), exemplar);
    }

    /// Adds a histogram, such as one that was counted in the kernel, to that of a series.
    pub fn merge(
        &mut self,
        instrument: &'static Instrument,
        attributes: Attributes,
        more: &Data,
        exemplar: Option<Exemplar>,
    ) {
        let (budget, start) = (self.budget, self.start_wall_ns());
        let new = || {
            let empty = match more {
                Data::Explicit(more) => Data::Explicit(ExplicitHistogram::new(more.bounds.clone())),
                _ => Data::Exponential(ExponentialHistogram::default()),
            };
            Cell::new(start, empty)
        };
        let cell = self.family(instrument).cell(budget, attributes, new);
        if let Some(exemplar) = exemplar {
            cell.keep(exemplar);
        }
        let is_merged = match (&mut cell.data, more) {
            (Data::Explicit(all), Data::Explicit(more)) => all.merge(more),
            (Data::Exponential(all), Data::Exponential(more)) => {
                all.merge(more);
                true
            }
            _ => false,
        };
        self.refused += u64::from(!is_merged);
    }

    /// Ends the series of owners that are gone, of what we count ourselves.
    pub fn forget(&mut self, is_gone: impl Fn(&Attributes) -> bool) {
        for family in self.families.values_mut() {
            family
                .cells
                .retain(|attributes, cell| cell.observed.is_some() || !is_gone(attributes));
        }
    }

    /// Ends the round: every series as it is now, but those that the round did not mention.
    pub fn collect(&mut self, time_wall_ns: u64) -> Vec<Metric> {
        let round = self.round;
        self.round += 1;
        self.last_wall_ns = time_wall_ns;
        let metrics = self.families.values_mut().filter_map(|family| {
            family
                .cells
                .retain(|_, cell| cell.observed.is_none_or(|seen| seen == round));
            family.beyond.retain(|_, (_, seen)| *seen == round);
            let point = |attributes: &Attributes, cell: &mut Cell| Point {
                attributes: attributes.clone(),
                // The wall clock may have been set back.
                start_wall_ns: cell.start_wall_ns.min(time_wall_ns),
                time_wall_ns,
                data: cell.data.clone(),
                exemplars: std::mem::take(&mut cell.exemplars),
            };
            let mut points: Vec<_> = family
                .cells
                .iter_mut()
                .map(|(attributes, cell)| point(attributes, cell))
                .collect();
            let overflow = Attributes::new([("otel.metric.overflow", Value::Flag(true))]);
            points.extend(family.overflow.as_mut().map(|cell| point(&overflow, cell)));
            // What is observed as it is now is summed anew in each round.
            if family
                .overflow
                .as_ref()
                .is_some_and(|cell| cell.observed.is_some())
            {
                family.overflow = None;
            }
            (!points.is_empty()).then_some(Metric {
                instrument: family.instrument,
                temporality: Temporality::Cumulative,
                points,
            })
        });
        metrics.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn instrument(name: &'static str, kind: Kind) -> Instrument {
        Instrument {
            name,
            unit: "1",
            description: "",
            kind,
        }
    }

    static COUNTER: Instrument = instrument("c", Kind::Counter);
    static UP_DOWN: Instrument = instrument("u", Kind::UpDownCounter);
    static GAUGE: Instrument = instrument("g", Kind::Gauge);
    static HISTOGRAM: Instrument = instrument("h", Kind::Histogram);

    fn of(name: u32) -> Attributes {
        Attributes::new([("name", Value::from(name))])
    }

    fn number(point: &Point) -> f64 {
        match &point.data {
            Data::Number(number) => number.as_f64(),
            other => panic!("no number: {other:?}"),
        }
    }

    fn find<'a>(metrics: &'a [Metric], name: &str) -> &'a [Point] {
        let metric = metrics.iter().find(|metric| metric.instrument.name == name);
        metric.map_or(&[], |metric| &metric.points)
    }

    fn sum(metrics: &[Metric], name: &str) -> f64 {
        find(metrics, name).iter().map(number).sum()
    }

    fn is_overflow(point: &Point) -> bool {
        point.attributes.get("otel.metric.overflow") == Some(&Value::Flag(true))
    }

    #[test]
    fn totals_are_kept_beyond_the_budget() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut series = Series::new(10, 1);
        let mut totals: Vec<u64> = vec![0; 40];
        for round in 1..30 {
            for (name, total) in (0..).zip(&mut totals) {
                *total += random.u64(..100);
                series.total(&COUNTER, of(name), Number::from(*total));
                series.value(&UP_DOWN, of(name), Number::from(*total));
                series.value(&GAUGE, of(name), Number::from(*total));
            }
            let metrics = series.collect(round * 10);
            let expected = totals.iter().sum::<u64>() as f64;
            assert_eq!(sum(&metrics, "c"), expected);
            assert_eq!(sum(&metrics, "u"), expected);
            assert_eq!(find(&metrics, "c").len(), 10);
            assert_eq!(find(&metrics, "g").len(), 9);
            assert_eq!(
                find(&metrics, "c")
                    .iter()
                    .filter(|point| is_overflow(point))
                    .count(),
                1
            );
        }
        assert_eq!(series.left_out, 29 * 31);
    }

    #[test]
    fn what_is_counted_beyond_the_budget_never_shrinks() {
        let mut series = Series::new(2, 1);
        let overflow = |metrics: &[Metric]| {
            number(find(metrics, "c").iter().find(|p| is_overflow(p)).unwrap())
        };
        for (name, total) in [(0, 5_u64), (1, 10), (2, 20)] {
            series.total(&COUNTER, of(name), total.into());
        }
        assert_eq!(overflow(&series.collect(10)), 30.0);
        // One is gone, one began anew; the one in front is gone, too, but nobody changes places.
        series.total(&COUNTER, of(1), 4_u64.into());
        let metrics = series.collect(20);
        assert_eq!(overflow(&metrics), 34.0);
        assert_eq!(find(&metrics, "c").len(), 1);
    }

    #[test]
    fn what_is_added_keeps_its_sum_beyond_the_budget() {
        let mut series = Series::new(5, 1);
        for name in 0..50 {
            series.add(&COUNTER, of(name % 20), Number::Integer(1));
            series.record(&HISTOGRAM, of(name % 20), f64::from(name), None);
        }
        let metrics = series.collect(10);
        assert_eq!((sum(&metrics, "c"), find(&metrics, "c").len()), (50.0, 5));
        let counts = find(&metrics, "h").iter().map(|point| match &point.data {
            Data::Exponential(histogram) => histogram.count(),
            other => panic!("{other:?}"),
        });
        assert_eq!(counts.sum::<u64>(), 50);
        series.forget(|attributes| attributes.get("name") == Some(&Value::Integer(0)));
        assert_eq!(find(&series.collect(20), "c").len(), 4);
    }

    #[test]
    fn a_counter_that_goes_back_starts_anew() {
        let mut series = Series::new(10, 1);
        let mut round = |total: u64, time| {
            series.total(&COUNTER, of(0), total.into());
            let metrics = series.collect(time);
            let point = &find(&metrics, "c")[0];
            (point.start_wall_ns, point.time_wall_ns, number(point))
        };
        assert_eq!(round(5, 10), (1, 10, 5.0));
        assert_eq!(round(7, 20), (1, 20, 7.0));
        assert_eq!(round(3, 30), (20, 30, 3.0));
        assert_eq!(round(4, 40), (20, 40, 4.0));
    }

    #[test]
    fn a_series_ends_with_its_owner_and_makes_room() {
        let mut series = Series::new(4, 1);
        series.total(&COUNTER, of(0), 5_u64.into());
        series.total(&COUNTER, of(1), 5_u64.into());
        assert_eq!(find(&series.collect(10), "c").len(), 2);
        series.total(&COUNTER, of(1), 5_u64.into());
        series.total(&COUNTER, of(2), 5_u64.into());
        let metrics = series.collect(20);
        let points = find(&metrics, "c");
        assert_eq!(points.len(), 2);
        assert!(!points.iter().any(is_overflow));
        // It came after the last round.
        assert_eq!(points[1].start_wall_ns, 10);
        assert!(series.collect(30).is_empty());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let mut series = Series::new(3, 1);
        series.value(&GAUGE, of(0), f64::NAN.into());
        series.add(&COUNTER, of(0), Number::Integer(-1));
        series.record(&HISTOGRAM, of(0), -1.0, None);
        assert!(series.collect(10).is_empty());
        assert_eq!(series.refused, 3);
    }
}
