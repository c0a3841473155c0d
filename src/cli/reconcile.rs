//! `workos-sync reconcile`: compares WorkOS with the rows, and mends what differs (R43, R44).

use std::process::ExitCode;

use serde_json::json;

use super::Intent;
use super::asking::{self, Meter};
use super::table::{one_line, or_dash};
use crate::config::Config;
use crate::heal::reconcile::{self, Found, Options, Report};
use crate::telemetry;

/// There is drift.
const DRIFT: u8 = 3;

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) async fn run(
    mut config: Config,
    options: Options,
    json: bool,
) -> anyhow::Result<ExitCode> {
    telemetry::init(config.log_format, std::mem::take(&mut config.log_level));
    let meter = Meter::new("reconcile");
    let intent = if options.apply {
        Intent::Write
    } else {
        Intent::Look
    };
    let report = asking::with(&config, "reconcile", intent, async |means| {
        let mut has_head = json;
        let tell = |found: &Found| {
            meter.aside(|| {
                if !std::mem::replace(&mut has_head, true) {
                    println!(
                        "{}",
                        line(["DIFFERENCE", "WORKOS ID", "ID", "HERE", "THERE"])
                    );
                }
                if json {
                    println!("{}", json!(found));
                } else {
                    println!("{}", row(found));
                }
            });
        };
        Ok(reconcile::run(means, options, tell, |progress| meter.show(progress)).await?)
    })
    .await?;
    drop(meter);
    if json {
        println!(
            "{}",
            json!({ "summary": report, "in_step": report.is_in_step() })
        );
    } else {
        println!("{}", summary(&report, options.apply));
    }
    Ok(if report.is_in_step() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DRIFT)
    })
}

fn row(found: &Found) -> String {
    // One line each, whatever somebody calls an organization.
    let text = |value: &Option<String>| or_dash(value.as_deref().map(one_line).as_deref());
    let difference = if found.drift {
        found.difference.as_str().to_owned()
    } else {
        format!("({})", found.difference.as_str())
    };
    line([
        &difference,
        &found.workos_id,
        &text(&found.organization_id),
        &text(&found.here),
        &text(&found.there),
    ])
}

/// A line of the table. The widths are those of ids; what is longer moves its line.
fn line(cells: [&str; 5]) -> String {
    let [difference, workos_id, id, here, there] = cells;
    format!("{difference:<22}  {workos_id:<30}  {id:<36}  {here:<30}  {there}")
        .trim_end()
        .to_owned()
}

fn summary(report: &Report, apply: bool) -> String {
    let Report {
        organizations,
        drift,
        left,
        missing_there,
        information,
    } = *report;
    let differences = format!("{organizations} organizations, {drift} differences");
    let information = if information > 0 {
        format!(", and {information} for information")
    } else {
        String::new()
    };
    let unlisted =
        || format!("WorkOS knows {missing_there} of them, but doesn't list them: look at these");
    let result = match (drift, left) {
        (0, _) => "in step".to_owned(),
        (_, 0) => "mended".to_owned(),
        _ if left == missing_there => unlisted(),
        _ if apply => {
            let unapplied = format!(
                "{} organizations can't be applied yet, or at all: workos_sync.webhook_events says why",
                left - missing_there
            );
            match missing_there {
                0 => unapplied,
                _ => format!("{unapplied}; {}", unlisted()),
            }
        }
        _ => "`workos-sync reconcile --apply` mends them".to_owned(),
    };
    format!("{differences}{information}: {result}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R43, R44: the last line says what is to be done, and if it can't, why.
    #[test]
    fn the_summary_says_what_is_left_and_why() {
        let report = |drift, left, missing_there| Report {
            organizations: 9,
            drift,
            left,
            missing_there,
            information: 0,
        };
        for (report, apply, ending) in [
            (report(0, 0, 0), false, ": in step"),
            (report(2, 2, 0), false, "--apply` mends them"),
            (report(2, 2, 1), false, "--apply` mends them"),
            (report(2, 2, 2), false, "doesn't list them: look at these"),
            (report(2, 0, 0), true, ": mended"),
            (report(2, 1, 0), true, "webhook_events says why"),
            (report(2, 1, 1), true, "doesn't list them: look at these"),
            (report(3, 2, 1), true, "doesn't list them: look at these"),
        ] {
            let summary = summary(&report, apply);
            assert!(summary.ends_with(ending), "{report:?}: {summary}");
            let unapplied = report.left > report.missing_there && apply;
            assert_eq!(summary.contains("can't be applied"), unapplied, "{summary}");
        }
    }
}
