//! Metric families by hand: `prometheus` has no constant metrics.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::catalogue::{Kind, Label};

/// A family that is being filled.
pub(super) struct Family {
    metric: super::Metric,
    samples: Vec<Metric>,
}

impl Family {
    /// An empty family of the catalogue.
    pub(super) const fn new(metric: super::Metric) -> Self {
        Self { metric, samples: Vec::new() }
    }

    /// Adds a histogram's sample: each upper bound with the number of observations below it, how
    /// many there are in all, and their sum.
    pub(super) fn add_classes(
        &mut self,
        classes: impl Iterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        let bucket = |(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(classes.map(bucket).collect());
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.samples.push(metric);
    }

    /// Adds one sample; `values` are those of the catalogue's labels, in its order.
    pub(super) fn add(&mut self, values: &[&str], value: f64) {
        let labels = self.metric.labels();
        debug_assert_eq!(values.len(), labels.len(), "labels of {}", self.metric.name());
        let pair = |(label, value): (&Label, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name(label.name.to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut metric = Metric::from_label(labels.iter().zip(values).map(pair).collect());
        if self.metric.kind() == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.samples.push(metric);
    }

    /// The finished family; one without samples says nothing.
    pub(super) fn finish(self) -> Option<MetricFamily> {
        if self.samples.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.metric.name().to_owned());
        family.set_help(self.metric.help().to_owned());
        family.set_field_type(match self.metric.kind() {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(self.samples);
        Some(family)
    }
}

/// Counters up to 2^53 are exact.
#[expect(clippy::cast_precision_loss, reason = "the exposition format has no other number")]
pub(super) const fn number(value: u64) -> f64 {
    value as f64
}
