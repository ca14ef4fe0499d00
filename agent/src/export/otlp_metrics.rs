//! OTLP metrics, `v1`.
//!
//! In: [`Metric`]s of one resource. Out: [`ExportMetricsServiceRequest`]s of bounded size. Sending
//! is [`super::otlp_send`]'s work.

use hotspan_proto::otlp::{
    common::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::{
        AggregationTemporality, Exemplar as OtlpExemplar, ExponentialHistogram as OtlpExponential,
        ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric as OtlpMetric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar,
        exponential_histogram_data_point::Buckets, metric, number_data_point,
    },
    metrics_service::ExportMetricsServiceRequest,
    resource::Resource as OtlpResource,
};

use super::otlp_profiles::{Host, SCHEMA_URL};
use crate::model::{
    Attributes, Data, Exemplar, Instrument, Kind, Metric, Number, Point, Resource, Temporality,
    Value,
};

/// Points of a request. One of a histogram with all its buckets takes some 600 bytes, so that a
/// request stays below the 4 MiB that many gRPC servers allow.
const POINTS_AT_ONCE: usize = 5_000;

/// The metrics as requests; none when there are none.
#[must_use]
pub fn requests(
    metrics: &[Metric],
    resource: &Resource,
    host: &Host,
) -> Vec<ExportMetricsServiceRequest> {
    let mut done = Vec::new();
    let (mut batch, mut room) = (Vec::new(), POINTS_AT_ONCE);
    for metric in metrics {
        let mut points = &metric.points[..];
        while !points.is_empty() {
            let (now, later) = points.split_at(points.len().min(room));
            batch.push(of_metric(metric.instrument, metric.temporality, now));
            (points, room) = (later, room - now.len());
            if room == 0 {
                done.push(request(std::mem::take(&mut batch), resource, host));
                room = POINTS_AT_ONCE;
            }
        }
    }
    if !batch.is_empty() {
        done.push(request(batch, resource, host));
    }
    done
}

fn request(
    metrics: Vec<OtlpMetric>,
    resource: &Resource,
    host: &Host,
) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope {
        name: "hotspan".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(of_resource(resource, host)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics,
                schema_url: SCHEMA_URL.to_owned(),
            }],
            schema_url: SCHEMA_URL.to_owned(),
        }],
    }
}

fn of_resource(resource: &Resource, host: &Host) -> OtlpResource {
    let attributes = resource.entries(host);
    OtlpResource {
        attributes: attributes
            .into_iter()
            .map(|(key, value)| key_value(key, any_value::Value::StringValue(value.to_owned())))
            .collect(),
        ..Default::default()
    }
}

fn of_metric(instrument: &Instrument, temporality: Temporality, points: &[Point]) -> OtlpMetric {
    let aggregation_temporality = match temporality {
        Temporality::Cumulative => AggregationTemporality::Cumulative,
        Temporality::Delta => AggregationTemporality::Delta,
    } as i32;
    let numbers = || points.iter().filter_map(number_point).collect();
    let sum = |is_monotonic| {
        metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality,
            is_monotonic,
        })
    };
    let is_explicit = matches!(
        points.first(),
        Some(Point {
            data: Data::Explicit(_),
            ..
        })
    );
    let data = match instrument.kind {
        Kind::Counter => sum(true),
        Kind::UpDownCounter => sum(false),
        Kind::Gauge => metric::Data::Gauge(Gauge {
            data_points: numbers(),
        }),
        Kind::Histogram if is_explicit => metric::Data::Histogram(Histogram {
            data_points: points.iter().filter_map(explicit_point).collect(),
            aggregation_temporality,
        }),
        Kind::Histogram => metric::Data::ExponentialHistogram(OtlpExponential {
            data_points: points.iter().filter_map(exponential_point).collect(),
            aggregation_temporality,
        }),
    };
    OtlpMetric {
        name: instrument.name.to_owned(),
        description: instrument.description.to_owned(),
        unit: instrument.unit.to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    }
}

fn number_point(point: &Point) -> Option<NumberDataPoint> {
    let Data::Number(number) = point.data else {
        return None;
    };
    Some(NumberDataPoint {
        attributes: key_values(&point.attributes),
        start_time_unix_nano: point.start_wall_ns,
        time_unix_nano: point.time_wall_ns,
        exemplars: exemplars(&point.exemplars),
        flags: 0,
        value: Some(match number {
            Number::Integer(number) => number_data_point::Value::AsInt(number),
            Number::Float(number) => number_data_point::Value::AsDouble(number),
        }),
    })
}

fn explicit_point(point: &Point) -> Option<HistogramDataPoint> {
    let Data::Explicit(histogram) = &point.data else {
        return None;
    };
    Some(HistogramDataPoint {
        attributes: key_values(&point.attributes),
        start_time_unix_nano: point.start_wall_ns,
        time_unix_nano: point.time_wall_ns,
        count: histogram.count(),
        sum: Some(histogram.sum),
        bucket_counts: histogram.counts.clone(),
        explicit_bounds: histogram.bounds.to_vec(),
        exemplars: exemplars(&point.exemplars),
        flags: 0,
        min: histogram.extremes.map(|(least, _)| least),
        max: histogram.extremes.map(|(_, most)| most),
    })
}

fn exponential_point(point: &Point) -> Option<ExponentialHistogramDataPoint> {
    let Data::Exponential(histogram) = &point.data else {
        return None;
    };
    Some(ExponentialHistogramDataPoint {
        attributes: key_values(&point.attributes),
        start_time_unix_nano: point.start_wall_ns,
        time_unix_nano: point.time_wall_ns,
        count: histogram.count(),
        sum: Some(histogram.sum),
        scale: histogram.scale,
        zero_count: histogram.zero_count,
        positive: Some(Buckets {
            offset: histogram.offset,
            bucket_counts: histogram.counts.clone(),
        }),
        negative: None,
        flags: 0,
        exemplars: exemplars(&point.exemplars),
        min: histogram.extremes.map(|(least, _)| least),
        max: histogram.extremes.map(|(_, most)| most),
        zero_threshold: 0.0,
    })
}

fn exemplars(exemplars: &[Exemplar]) -> Vec<OtlpExemplar> {
    let convert = |exemplar: &Exemplar| OtlpExemplar {
        filtered_attributes: Vec::new(),
        time_unix_nano: exemplar.time_wall_ns,
        span_id: exemplar.link.span_id.to_vec(),
        trace_id: exemplar.link.trace_id.to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
    };
    exemplars.iter().map(convert).collect()
}

fn key_values(attributes: &Attributes) -> Vec<KeyValue> {
    let convert = |(key, value): (&str, &Value)| {
        let value = match value {
            Value::Text(text) => any_value::Value::StringValue(text.to_string()),
            Value::Integer(number) => any_value::Value::IntValue(*number),
            Value::Flag(flag) => any_value::Value::BoolValue(*flag),
        };
        key_value(key, value)
    };
    attributes.iter().map(convert).collect()
}

fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

impl Resource {
    /// All attributes, by name: what was given, then what is known of the host and of hotspan.
    #[must_use]
    pub fn entries<'a>(&'a self, host: &'a Host) -> Vec<(&'a str, &'a str)> {
        let mut entries = vec![
            ("service.name", &*self.service_name),
            ("service.instance.id", &*self.service_instance),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("telemetry.sdk.name", "hotspan"),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
            ("os.type", "linux"),
            ("host.arch", host.arch),
        ];
        if !host.name.is_empty() {
            entries.push(("host.name", &host.name));
        }
        for (key, value) in &self.attributes {
            match entries.iter_mut().find(|(known, _)| *known == &**key) {
                Some((_, known)) => *known = value,
                None => entries.push((key, value)),
            }
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::prometheus::fixture;

    #[test]
    fn every_kind_keeps_its_numbers() {
        let metrics = fixture::metrics();
        let requests = requests(&metrics, &fixture::resource(), &Host::default());
        let sent = &requests[0].resource_metrics[0].scope_metrics[0].metrics;
        assert_eq!(sent.len(), metrics.len());
        let Some(metric::Data::Sum(sum)) = &sent[0].data else {
            panic!("no sum");
        };
        assert!(sum.is_monotonic);
        assert_eq!(
            sum.aggregation_temporality,
            AggregationTemporality::Cumulative as i32
        );
        assert_eq!(
            sum.data_points[0].value,
            Some(number_data_point::Value::AsDouble(1.5))
        );
        let exponential = sent.iter().find_map(|metric| match &metric.data {
            Some(metric::Data::ExponentialHistogram(found)) => Some(&found.data_points[0]),
            _ => None,
        });
        let point = exponential.unwrap();
        assert_eq!((point.count, point.zero_count), (4, 1));
        let positive = point.positive.as_ref().unwrap();
        assert_eq!(positive.bucket_counts.iter().sum::<u64>(), 3);
        assert_eq!(point.exemplars[0].trace_id.len(), 16);
    }

    #[test]
    fn many_points_are_several_requests() {
        let mut metric = fixture::metrics().remove(0);
        let point = metric.points[0].clone();
        metric.points = vec![point; POINTS_AT_ONCE * 2 + 1];
        let requests = requests(&[metric], &fixture::resource(), &Host::default());
        let count = |request: &ExportMetricsServiceRequest| {
            let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
            match &metrics[0].data {
                Some(metric::Data::Sum(sum)) => sum.data_points.len(),
                other => panic!("{other:?}"),
            }
        };
        let counts: Vec<_> = requests.iter().map(count).collect();
        assert_eq!(counts, [POINTS_AT_ONCE, POINTS_AT_ONCE, 1]);
        assert!(super::requests(&[], &fixture::resource(), &Host::default()).is_empty());
    }
}
