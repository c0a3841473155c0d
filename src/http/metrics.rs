//! `GET /metrics`: in the format that the scraper asks for (R51).

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::App;
use super::problem::Problem;

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4
    Text,
}

impl Format {
    const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_client::encoding::prometheus_text::CONTENT_TYPE,
        }
    }
}

pub(super) async fn metrics(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let format = negotiate(&headers);
    let super::Inner {
        health, metrics, ..
    } = &*app.inner;
    // A scrape looks at the application's table as a probe does, if that is due.
    let _ = health.check().await;
    metrics.schema_usable(health.conditions().is_empty());
    let exposition = match format {
        Format::OpenMetrics => metrics.render(),
        Format::Text => metrics.render_text(),
    }
    .map_err(|_| Problem::internal())?;
    let headers = [
        (
            CONTENT_TYPE,
            HeaderValue::from_static(format.content_type()),
        ),
        (VARY, HeaderValue::from_name(ACCEPT)),
    ];
    Ok((headers, exposition).into_response())
}

/// OpenMetrics where `Accept` wants it at least as much as text, and says so; text otherwise, also where neither is
/// wanted (RFC 9110, section 12.5.1).
fn negotiate(headers: &HeaderMap) -> Format {
    let mut open_metrics = Wanted::default();
    let mut text = Wanted::default();
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(Range::parse);
    for range in ranges {
        match (&*range.media_type, range.version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => open_metrics.by(3, range.q),
            ("application/*", _) => open_metrics.by(2, range.q),
            ("text/plain", None | Some("0.0.4")) => text.by(3, range.q),
            ("text/*", _) => text.by(2, range.q),
            ("*/*", _) => {
                open_metrics.by(1, range.q);
                text.by(1, range.q);
            }
            _ => {}
        }
    }
    let named = open_metrics.precision > text.precision || open_metrics.precision == 3;
    if open_metrics.q > text.q || (open_metrics.q == text.q && open_metrics.q > 0 && named) {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

/// How much a format is wanted: as the most precise range says that it is in.
#[derive(Debug, Default)]
struct Wanted {
    precision: u8,
    /// In thousandths: 1000 at most, and 0 for not at all.
    q: u16,
}

impl Wanted {
    fn by(&mut self, precision: u8, q: u16) {
        // Of two ranges of one precision, such as two versions of which we speak either, the better counts.
        let key = std::cmp::max((self.precision, self.q), (precision, q));
        (self.precision, self.q) = key;
    }
}

/// A range of media types that `Accept` names.
#[derive(Debug)]
struct Range<'a> {
    media_type: String,
    version: Option<&'a str>,
    q: u16,
}

impl<'a> Range<'a> {
    /// Reads a range; one whose weight can't be read counts for nothing.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self {
            media_type: parts.next()?.to_ascii_lowercase(),
            version: None,
            q: 1_000,
        };
        for part in parts {
            let Some((name, value)) = part.split_once('=') else {
                continue;
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => range.version = Some(value.trim().trim_matches('"')),
                "q" => range.q = thousandths(value.trim())?,
                _ => {}
            }
        }
        Some(range)
    }
}

/// Reads a weight: 0 to 1, with three digits behind the point at most.
fn thousandths(weight: &str) -> Option<u16> {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths = format!("{fraction:0<3}").parse::<u16>().ok()?;
    match (whole, digits) {
        ("0", true) => Some(thousandths),
        ("1", true) if thousandths == 0 => Some(1_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &[&'static str]) -> Format {
        let headers = accept
            .iter()
            .map(|value| (ACCEPT, HeaderValue::from_static(value)))
            .fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            });
        negotiate(&headers)
    }

    /// R51: OpenMetrics for whoever asks for it, with weights, versions and wildcards as RFC 9110 has them.
    #[test]
    fn the_format_is_the_one_that_is_wanted() {
        for accept in [
            // Prometheus 3, Prometheus 2
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text",
            "APPLICATION/OpenMetrics-Text ; Version=\"1.0.0\"",
            "application/openmetrics-text, text/plain",
            "text/plain;q=0.4, application/openmetrics-text;q=0.5",
            "*/*;q=0.1, application/openmetrics-text;q=0.1",
            "application/*, text/*;q=0.9",
            "text/plain;q=0, */*",
        ] {
            assert_eq!(format(&[accept]), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/*, application/*",
            "text/plain;version=0.0.4;q=0.5, application/openmetrics-text;q=0.4",
            "application/openmetrics-text;q=0, text/plain;q=0",
            "application/openmetrics-text;q=0, */*",
            // A version that we don't speak; weights that are none; another type.
            "application/openmetrics-text;version=0.0.1, text/plain;q=0.1",
            "application/openmetrics-text;q=2, text/plain;q=0.001",
            "application/openmetrics-text;q=0.5001, text/plain;q=0.001",
            "application/openmetrics-text;q=, text/plain;q=0.1",
            "application/json",
        ] {
            assert_eq!(format(&[accept]), Format::Text, "{accept}");
        }
        assert_eq!(format(&[]), Format::Text);
        // Several lines are one list.
        let lines = ["text/plain;q=0.3", "application/openmetrics-text;q=0.4"];
        assert_eq!(format(&lines), Format::OpenMetrics);
    }
}
