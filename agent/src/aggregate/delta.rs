//! Cumulative points become points of what happened since the last ones, for a backend that
//! wants them so. Up-down counters and gauges stay as they are: OpenTelemetry's preference `delta`.

use rustc_hash::FxHashMap;

use crate::model::{Attributes, Data, Kind, Metric, Point, Temporality};

/// What one exit was told last.
#[derive(Debug, Default)]
pub struct Deltas {
    last: FxHashMap<(&'static str, Attributes), Point>,
}

impl Deltas {
    /// What happened since the last call. A series that is new, or began anew, tells all since its
    /// start.
    pub fn of(&mut self, metrics: &[Metric]) -> Vec<Metric> {
        let mut last = std::mem::take(&mut self.last);
        let changed = metrics.iter().map(|metric| {
            if !matches!(metric.instrument.kind, Kind::Counter | Kind::Histogram) {
                return metric.clone();
            }
            let points = metric.points.iter().map(|point| {
                let key = (metric.instrument.name, point.attributes.clone());
                let before = last.remove(&key);
                let delta = before.as_ref().and_then(|before| since(point, before));
                let now = Point {
                    exemplars: Vec::new(),
                    ..point.clone()
                };
                self.last.insert(key, now);
                delta.unwrap_or_else(|| point.clone())
            });
            Metric {
                instrument: metric.instrument,
                temporality: Temporality::Delta,
                points: points.collect(),
            }
        });
        changed.collect()
    }
}

fn since(now: &Point, before: &Point) -> Option<Point> {
    if now.start_wall_ns != before.start_wall_ns {
        return None;
    }
    let data = match (&now.data, &before.data) {
        (Data::Number(now), Data::Number(before)) => Data::Number(now.minus(*before)),
        (Data::Explicit(now), Data::Explicit(before)) => Data::Explicit(now.since(before)?),
        (Data::Exponential(now), Data::Exponential(before)) => {
            Data::Exponential(now.since(before)?)
        }
        _ => return None,
    };
    Some(Point {
        start_wall_ns: before.time_wall_ns,
        data,
        ..now.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Series;
    use crate::model::{ExponentialHistogram, Instrument, Number};

    static COUNTER: Instrument = Instrument {
        name: "c",
        unit: "1",
        description: "",
        kind: Kind::Counter,
    };
    static HISTOGRAM: Instrument = Instrument {
        name: "h",
        unit: "s",
        description: "",
        kind: Kind::Histogram,
    };

    #[test]
    fn deltas_add_up_to_the_cumulative_points() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut series, mut deltas) = (Series::new(8, 1), Deltas::default());
        let (mut total, mut sum, mut times) =
            (0_u64, Number::Integer(0), ExponentialHistogram::default());
        let mut last_ns = 1;
        for round in 1..50 {
            total += random.u64(..1_000);
            series.total(&COUNTER, Attributes::default(), total.into());
            for _ in 0..random.usize(..20) {
                let value = (random.f64() * 20.0).exp2();
                series.record(&HISTOGRAM, Attributes::default(), value, None);
            }
            series.record(&HISTOGRAM, Attributes::default(), 1.0, None);
            let metrics = series.collect(round * 10);
            for metric in deltas.of(&metrics) {
                let point = &metric.points[0];
                assert_eq!(metric.temporality, Temporality::Delta);
                match &point.data {
                    Data::Number(more) => {
                        assert_eq!(point.start_wall_ns, last_ns);
                        sum = sum.plus(*more);
                    }
                    Data::Exponential(more) => times.merge(more),
                    other => panic!("{other:?}"),
                }
            }
            last_ns = round * 10;
            assert_eq!(sum, total.into());
            let Data::Exponential(whole) = &metrics[1].points[0].data else {
                panic!("no histogram");
            };
            assert_eq!(times.count(), whole.count());
            assert_eq!((times.scale, times.offset), (whole.scale, whole.offset));
            assert_eq!(times.counts, whole.counts);
        }
    }

    #[test]
    fn a_counter_that_began_anew_tells_all_since_then() {
        let (mut series, mut deltas) = (Series::new(8, 1), Deltas::default());
        let mut seen = Vec::new();
        for (round, total) in (1..).zip([5_u64, 8, 2]) {
            series.total(&COUNTER, Attributes::default(), total.into());
            let point = deltas
                .of(&series.collect(round * 10))
                .remove(0)
                .points
                .remove(0);
            seen.push((point.start_wall_ns, point.data));
        }
        let data = |number| Data::Number(Number::Integer(number));
        assert_eq!(seen, [(1, data(5)), (10, data(3)), (20, data(2))]);
        // Nothing is kept of what is gone.
        series.collect(40);
        deltas.of(&[]);
        assert!(deltas.last.is_empty());
    }
}
