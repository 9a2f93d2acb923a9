//! Numbers for Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::queue::Room;
use crate::kernels::cpu::memory;

/// The numbers, and the registry that writes them.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    failures: Family<KindLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    texts: Family<ModelLabels, Counter>,
    tokens: Family<ModelLabels, Counter>,
    waits: Histogram,
    batch_texts: Histogram,
    batch_tokens: Histogram,
    batch_seconds: Histogram,
    pub(super) abandoned: Counter,
    pub(super) connections: Gauge,
    pub(super) models: Gauge,
    pub(super) bases: Gauge,
    queue_texts: Gauge,
    queue_tokens: Gauge,
    resident: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

/// Seconds from half a millisecond to 16.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

fn counts(most: u16) -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, most))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("llmcls"),
            requests: Family::default(),
            failures: Family::default(),
            durations: Family::new_with_constructor(seconds),
            texts: Family::default(),
            tokens: Family::default(),
            waits: seconds(),
            batch_texts: counts(12),
            batch_tokens: counts(18),
            batch_seconds: seconds(),
            abandoned: Counter::default(),
            connections: Gauge::default(),
            models: Gauge::default(),
            bases: Gauge::default(),
            queue_texts: Gauge::default(),
            queue_tokens: Gauge::default(),
            resident: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register("failures", "Requests that failed, by kind", self.failures.clone());
        registry.register("request_duration_seconds", "From head to answer", self.durations.clone());
        registry.register("texts", "Texts classified", self.texts.clone());
        registry.register("tokens", "Tokens of texts classified", self.tokens.clone());
        registry.register("queue_duration_seconds", "From queue to first batch", self.waits.clone());
        registry.register("batch_texts", "Texts in a batch", self.batch_texts.clone());
        registry.register("batch_tokens", "Tokens in a batch", self.batch_tokens.clone());
        registry.register("batch_duration_seconds", "Computing a batch", self.batch_seconds.clone());
        registry.register("abandoned", "Requests dropped because their client had gone", self.abandoned.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register("models", "Classifiers served", self.models.clone());
        registry.register("bases", "Bases in memory", self.bases.clone());
        registry.register("queue_texts", "Texts that wait or are in work", self.queue_texts.clone());
        registry.register("queue_tokens", "Tokens that wait or are in work", self.queue_tokens.clone());
        registry.register("resident_memory_bytes", "Resident memory of the process", self.resident.clone());
    }

    pub(super) fn request(&self, route: &str, status: u16, took: Duration) {
        let route = route.to_owned();
        self.durations.get_or_create(&RouteLabels { route: route.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { route, status: status.into() }).inc();
    }

    pub(super) fn failure(&self, kind: &str) {
        self.failures.get_or_create(&KindLabels { kind: kind.to_owned() }).inc();
    }

    pub(super) fn classified(&self, model: &str, texts: usize, tokens: usize, waited: Duration) {
        let labels = ModelLabels { model: model.to_owned() };
        self.texts.get_or_create(&labels).inc_by(texts as u64);
        self.tokens.get_or_create(&labels).inc_by(tokens as u64);
        self.waits.observe(waited.as_secs_f64());
    }

    pub(super) fn batch(&self, texts: usize, tokens: usize, took: Duration) {
        self.batch_texts.observe(texts as f64);
        self.batch_tokens.observe(tokens as f64);
        self.batch_seconds.observe(took.as_secs_f64());
    }

    /// All numbers, in OpenMetrics' text form.
    pub(super) fn text(&self, room: &Room) -> String {
        self.queue_texts.set(room.texts() as i64);
        self.queue_tokens.set(room.tokens() as i64);
        self.resident.set(memory::resident_bytes().map_or(f64::NAN, |bytes| bytes as f64));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
