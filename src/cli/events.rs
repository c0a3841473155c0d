//! `workos-sync events`: looks at events, retries and discards them (R47, R48).

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;
use sqlx::PgPool;

use super::operating::{self, Desk, say};
use super::table::{Facts, Table, or_dash, printable, time};
use crate::config::Config;
use crate::operate::events::{self, EventDetail, EventSummary, PENDING_LOOKED_AT};
use crate::operate::{Filter, FilterTexts, Listed, OperateError, Page, Selection, Verb, bulk};

#[derive(Subcommand)]
pub(super) enum EventsCommand {
    /// List events, the newest received first
    List {
        #[command(flatten)]
        filter: FilterTexts,
        /// How many, up to 1000 [default: 50]
        #[arg(long, value_name = "COUNT")]
        limit: Option<String>,
        /// Go on behind the last event of the list before
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Print all that is known of an event
    Show {
        /// Event id
        id: String,
        /// Print its body, too
        #[arg(long)]
        payload: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Count failed events and dead letters by what failed
    Causes {
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Have failed events and dead letters tried again, now
    Retry(Named),
    /// Give up pending and failed events and dead letters, for good
    Discard {
        #[command(flatten)]
        named: Named,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Which events are to be changed.
#[derive(clap::Args)]
pub(super) struct Named {
    /// Event ids; or say by options which events are meant
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: FilterTexts,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, command: EventsCommand) -> anyhow::Result<ExitCode> {
    Desk::with(config, async |desk| match command {
        EventsCommand::List {
            filter,
            limit,
            after,
            json,
        } => {
            let page = Page::read(limit.as_deref(), after).map_err(OperateError::from)?;
            list(desk, filter, &page, json).await
        }
        EventsCommand::Show { id, payload, json } => show(desk, &id, payload, json).await,
        EventsCommand::Causes { json } => causes(desk, json).await,
        EventsCommand::Retry(named) => change(desk, Verb::Retry, named, None).await,
        EventsCommand::Discard { named, reason } => {
            if reason.trim().is_empty() {
                return Err(OperateError::NoReason.into());
            }
            change(desk, Verb::Discard, named, Some(&reason)).await
        }
    })
    .await
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
async fn list(
    desk: &Desk,
    filter: FilterTexts,
    page: &Page,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let filter = desk.filter(filter)?;
    let listed = search(&desk.pool, &filter, page).await?;
    if json {
        for event in &listed.items {
            println!("{}", json!(event));
        }
    } else {
        print!("{}", table(&listed.items));
    }
    if listed.pending_left_out {
        say(&format!(
            "more than {PENDING_LOOKED_AT} events are pending: some are left out; --organization lists those of one"
        ));
    }
    if let Some(next) = listed.next {
        let are = if listed.searched_to.is_some() {
            "may be"
        } else {
            "are"
        };
        say(&format!("there {are} more: --after {next}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists events, page by page until there are as many as were asked for: whoever is at the command line can wait for what
/// is rare, and each statement is a short one.
async fn search(pool: &PgPool, filter: &Filter, page: &Page) -> Result<Listed, OperateError> {
    let mut found = events::list(pool, filter, page).await?;
    while found.searched_to.is_some() {
        let missing = page.limit - i64::try_from(found.items.len()).unwrap_or(i64::MAX);
        if missing <= 0 {
            break;
        }
        let rest = Page {
            limit: missing,
            after: found.next,
        };
        let more = events::list(pool, filter, &rest).await?;
        found = Listed {
            items: [found.items, more.items].concat(),
            ..more
        };
    }
    Ok(found)
}

/// Events, a line each.
pub(super) fn table(events: &[EventSummary]) -> Table {
    let mut table = Table::new([
        "RECEIVED",
        "EVENT",
        "TYPE",
        "ORGANIZATION",
        "STATUS",
        "OUTCOME",
        "TRIES",
        "CAUSE",
    ]);
    for event in events {
        table.push([
            time(event.received_at),
            event.event_id.clone(),
            event.event_type.clone(),
            or_dash(event.organization_id.as_deref()),
            event.status.clone(),
            or_dash(event.outcome.as_deref()),
            event.attempts.to_string(),
            or_dash(event.cause.as_deref()),
        ]);
    }
    table
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
async fn show(desk: &Desk, id: &str, payload: bool, json: bool) -> anyhow::Result<ExitCode> {
    let Some(event) = events::show(&desk.pool, id).await? else {
        bail!("there is no event {id}");
    };
    let payload = if payload {
        events::payload(&desk.pool, id).await?
    } else {
        None
    };
    if json {
        let mut object = json!(event);
        if let Some(payload) = payload {
            object["payload"] = payload.into();
        }
        println!("{object}");
    } else {
        print!("{}", facts(&event));
        if !event.failures.is_empty() {
            let mut table = Table::new(["TRY", "AT", "CAUSE", "ERROR"]);
            for failure in &event.failures {
                table.push([
                    failure.attempt.to_string(),
                    time(failure.at),
                    failure.cause.clone(),
                    failure.error.clone(),
                ]);
            }
            print!("\n{table}");
        }
        match payload {
            // Whatever somebody has put into it, the terminal takes no orders from it.
            Some(payload) if stdout().is_terminal() => println!("\n{}", printable(&payload)),
            Some(payload) => println!("\n{payload}"),
            None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(event: &EventDetail) -> Facts {
    let mut facts = Facts::default();
    let summary = &event.summary;
    facts.push("event", &summary.event_id);
    facts.push("type", &summary.event_type);
    facts.push_some("organization", summary.organization_id.as_ref());
    facts.push("status", &summary.status);
    facts.push_some("outcome", summary.outcome.as_ref());
    facts.push_some("compared with", event.compared.as_ref());
    facts.push("source", &summary.source);
    facts.push("received", time(summary.received_at));
    facts.push_some("delivered", event.delivered_at.map(time));
    facts.push_some("ended", summary.processed_at.map(time));
    facts.push_some("next try", summary.next_attempt_at.map(time));
    facts.push("tries", summary.attempts);
    facts.push_some(
        "refusals",
        Some(event.refusals).filter(|refusals| *refusals > 0),
    );
    facts.push_some("cause", summary.cause.as_ref());
    facts.push_some("error", summary.last_error.as_ref());
    facts.push_some(
        "replayed",
        event.replayed.then_some("decided again by an operator"),
    );
    facts.push_some(
        "operator",
        event.action.as_ref().map(|action| {
            let at = time(action.at);
            let what = format!("{} by {} at {at}", action.action, action.actor);
            match &action.reason {
                Some(reason) => format!("{what}: {reason}"),
                None => what,
            }
        }),
    );
    if event.lane != summary.organization_id.as_deref().unwrap_or_default() {
        facts.push("lane", &event.lane);
    }
    facts.push("order", &event.event_order);
    facts.push("body", format!("{} bytes", event.payload_bytes));
    facts
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
async fn causes(desk: &Desk, json: bool) -> anyhow::Result<ExitCode> {
    let causes = events::causes(&desk.pool).await?;
    if json {
        for cause in &causes {
            println!("{}", json!(cause));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        "CAUSE", "DEAD", "FAILED", "FIRST", "LAST", "EXAMPLE", "ERROR",
    ]);
    for cause in causes {
        table.push([
            or_dash(cause.cause.as_deref()),
            cause.dead.to_string(),
            cause.failed.to_string(),
            time(cause.first_at),
            time(cause.last_at),
            cause.example,
            or_dash(cause.example_error.as_deref()),
        ]);
    }
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
async fn change(
    desk: &Desk,
    verb: Verb,
    named: Named,
    reason: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let selection = Selection::of(named.ids, desk.filter(named.filter)?)?;
    let count = bulk::count(&desk.pool, verb, &selection).await?;
    let question = format!(
        "{} {} in {}",
        verb.as_str(),
        operating::events(count),
        desk.url
    );
    if count > 0 && !operating::confirm(&question, named.yes)? {
        return Ok(ExitCode::FAILURE);
    }
    let bulk = bulk::begin(&desk.pool, verb, selection, reason, &operating::actor()).await?;
    let bar = operating::bar(verb.as_str(), count);
    let done = bulk
        .finish(|progress| bar.set_position(progress.count.unsigned_abs()))
        .await?;
    bar.finish_and_clear();
    for left in &done.left {
        match &left.status {
            Some(status) => say(&format!("{} is {status}, and left alone", left.event_id)),
            None => say(&format!("there is no event {}", left.event_id)),
        }
    }
    if named.json {
        println!(
            "{}",
            json!({ "action": verb, "count": done.count, "left": done.left })
        );
    } else {
        println!(
            "{} {} in {}",
            operating::events(done.count),
            verb.past(),
            desk.url
        );
    }
    // One that isn't there is a mistake; one that stands elsewhere by now is none.
    let are_there = done.left.iter().all(|left| left.status.is_some());
    Ok(if are_there {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
