//! Traces, for an OpenTelemetry collector, as the variables `OTEL_*` of its specification say: see `docs/tracing.md`.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// What is traced: our own spans. Those of the libraries would be traced while they export.
const TRACED: &str = "workos_sync";

/// How long the end of the process waits for a collector that doesn't answer.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// Sends what is traced, from a thread of its own.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// The layer that traces; nothing is traced unless a collector is named.
pub(super) fn layer<S>() -> Result<Option<impl Layer<S> + Send + Sync>, ExporterBuildError>
where
    S: Subscriber + Send + Sync + for<'span> LookupSpan<'span>,
{
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is = |name, value| std::env::var_os(name).is_some_and(|found| found == value);
    let is_wanted =
        is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    if !is_wanted || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    // The exporter's client takes the provider of the process, and this is the process's own module. That it stands
    // already is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = SpanExporter::builder().with_http().build()?;
    let mut resource = Resource::builder();
    if !is_set("OTEL_SERVICE_NAME") {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_batch_exporter(exporter)
        .build();
    let tracer = PROVIDER.get_or_init(|| provider).tracer(TRACED);
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    let ours = Targets::new().with_target(TRACED, LevelFilter::DEBUG);
    Ok(Some(layer.with_filter(ours)))
}

/// Sends what is left. A collector that doesn't take it is no reason to fail.
pub(super) fn end() {
    if let Some(provider) = PROVIDER.get() {
        let _ = provider.shutdown_with_timeout(LAST_EXPORT);
    }
}
