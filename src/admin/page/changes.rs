//! What changes something: each asks on a page, or in a dialog of the script, and says on the next page what was done.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::SET_COOKIE;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::json;

use super::layout::{Question, Tab};
use super::parts::{count, of, time};
use super::records::in_words;
use super::{answer, lead_to, led};
use crate::admin::form::{Parameters, body};
use crate::admin::questions::{pause_length, read_filter, refuse_nul};
use crate::admin::{Admin, page};
use crate::http::problem::Problem;
use crate::operate::pausing;
use crate::operate::{Filter, Progress, Selection, Verb, bulk};

/// The parameters that say what was done.
pub(super) const NOTICE: [&str; 3] = ["done", "count", "left"];

/// The lengths of a pause that are offered.
const LENGTHS: [(&str, &str); 5] = [
    ("15m", "15 minutes"),
    ("1h", "1 hour"),
    ("4h", "4 hours"),
    ("12h", "12 hours"),
    ("24h", "24 hours"),
];

/// Says what was done, on the page after it.
pub(super) fn notice(query: Option<&str>) -> Markup {
    let parameters = Parameters::parse(query.unwrap_or_default().as_bytes());
    let number = |name| {
        parameters
            .get(name)
            .and_then(|number| number.parse::<i64>().ok())
    };
    let events = of(number("count").unwrap_or(0), "event");
    let left = number("left").filter(|left| *left > 0);
    let text = match parameters.get("done") {
        Some("retry") => format!("{events} will be tried again at once."),
        Some("discard") => format!("{events} given up."),
        Some("pause") => "Nothing is applied until you resume, or the pause is over.".to_owned(),
        Some("resume") => "The pause is over: what waits is applied within seconds.".to_owned(),
        _ => return html! {},
    };
    html! {
        p.notice role="status" {
            (text)
            @if let Some(left) = left { " " (of(left, "event")) " had changed meanwhile, and was left alone." }
        }
    }
}

/// Where an action leads back to: a page of ours, whatever somebody has made of the form.
fn back(parameters: &Parameters) -> String {
    let back = parameters.get("back").unwrap_or_default();
    let mut bytes = back.bytes();
    let is_ours = bytes.next() == Some(b'/')
        && !matches!(bytes.next(), Some(b'/' | b'\\'))
        && back.bytes().all(|byte| byte.is_ascii_graphic());
    if is_ours { back } else { "/" }.to_owned()
}

/// Leads back, and has it said there what was done.
fn done(parameters: &Parameters, what: &str, numbers: &[(&str, i64)]) -> Response {
    let back = back(parameters);
    let (path, query) = back.split_once('?').unwrap_or((&back, ""));
    let query = Parameters::parse(query.as_bytes()).without(&NOTICE);
    let query = numbers
        .iter()
        .fold(query.with("done", what), |query, (name, number)| {
            query.with(name, number.to_string())
        });
    lead_to(&query.on(path))
}

/// Which events a form is about.
fn selection(admin: &Admin, parameters: &Parameters) -> Result<Selection, Problem> {
    refuse_nul(parameters)?;
    let ids = parameters.all("id");
    let filter = parameters.without(&["id", "back", "reason"]);
    let filter: Filter = read_filter(&filter, admin.now())?;
    Ok(Selection::of(ids, filter)?)
}

pub(super) async fn ask_retry(state: State<Admin>, query: RawQuery) -> Response {
    ask(state, query, Verb::Retry).await
}

pub(super) async fn ask_discard(state: State<Admin>, query: RawQuery) -> Response {
    ask(state, query, Verb::Discard).await
}

/// Says how many events an action would change, and asks.
async fn ask(State(admin): State<Admin>, RawQuery(query): RawQuery, verb: Verb) -> Response {
    let parameters = Parameters::filled(query.unwrap_or_default().as_bytes());
    let (name, title) = match verb {
        Verb::Discard => ("Discard", "Discard events?"),
        _ => ("Retry", "Retry events?"),
    };
    let content = async {
        let selection = selection(&admin, &parameters)?;
        let number = bulk::count(admin.pool(), verb, &selection).await?;
        let button = format!("{name} {}", of(number, "event"));
        let is_final = verb == Verb::Discard;
        let question = Question {
            title,
            text: html! {
                p { (what(&selection, number)) }
                @if is_final {
                    p.dim { "They are given up for good. Their rows stay for a while; delivered again, they are duplicates." }
                } @else {
                    p.dim { "They are tried at once. What has not been mended fails again." }
                }
            },
            fields: html! {
                @if is_final {
                    label { "Reason" input name="reason" required maxlength="500" autocomplete="off" autofocus; }
                }
            },
            button: (number > 0).then_some(&*button),
            is_final,
            action: if is_final { "/discard" } else { "/retry" },
            parameters: &parameters.without(&["back"]),
            back: &back(&parameters),
        };
        Ok(question.show())
    };
    answer(&admin, Tab::Events, title, content.await)
}

/// What an action is about, in words.
fn what(selection: &Selection, number: i64) -> Markup {
    let events = of(number, "event");
    match selection {
        Selection::Ids(ids) => {
            let others = i64::try_from(ids.len()).unwrap_or(i64::MAX) - number;
            html! {
                (events) " of those selected."
                @if others > 0 { " It can't be done to " (count(others)) " of them." }
            }
        }
        Selection::Filter(filter) => html! {
            (events) ", all with " code { (in_words(&json!(filter))) } "."
        },
    }
}

pub(super) async fn retry(State(admin): State<Admin>, body: Body) -> Response {
    change(&admin, body, Verb::Retry).await
}

pub(super) async fn discard(State(admin): State<Admin>, body: Body) -> Response {
    change(&admin, body, Verb::Discard).await
}

async fn change(admin: &Admin, body: Body, verb: Verb) -> Response {
    let changed = async {
        let parameters = Parameters::filled(&self::body(body).await?);
        let selection = selection(admin, &parameters)?;
        let reason = parameters.get("reason");
        let begun = bulk::begin(admin.pool(), verb, selection, reason, &admin.actor()).await?;
        let Progress { count, left } = begun.finish(|_| {}).await?;
        let left = i64::try_from(left.len()).unwrap_or(i64::MAX);
        let numbers = [("count", count), ("left", left)];
        Ok(done(&parameters, verb.as_str(), &numbers))
    };
    led(admin, changed.await)
}

pub(super) async fn ask_pause(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::parse(query.unwrap_or_default().as_bytes());
    let title = "Pause?";
    let question = Question {
        title,
        text: html! {
            p { "Events are accepted and wait; nothing is applied, or written to WorkOS. All replicas pause." }
        },
        fields: html! {
            label {
                "For"
                select name="for" {
                    @for (length, name) in LENGTHS { option value=(length) selected[length == "1h"] { (name) } }
                }
            }
            label { "Reason, for those who look" input name="reason" maxlength="500" autocomplete="off"; }
        },
        button: Some("Pause"),
        is_final: false,
        action: "/pause",
        parameters: &Parameters::default(),
        back: &back(&parameters),
    };
    answer(&admin, Tab::Overview, title, Ok(question.show()))
}

pub(super) async fn pause(State(admin): State<Admin>, body: Body) -> Response {
    let paused = async {
        let parameters = Parameters::filled(&self::body(body).await?);
        refuse_nul(&parameters)?;
        let length = pause_length(parameters.get("for"))?;
        pausing::pause(
            admin.pool(),
            length,
            parameters.get("reason"),
            &admin.actor(),
        )
        .await?;
        Ok(done(&parameters, "pause", &[]))
    };
    led(&admin, paused.await)
}

pub(super) async fn ask_resume(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::parse(query.unwrap_or_default().as_bytes());
    let title = "Resume?";
    let content = async {
        let pause = pausing::paused(admin.pool()).await?;
        let question = Question {
            title,
            text: html! {
                @match &pause {
                    Some(pause) => p {
                        "Paused by " (pause.actor) "; it would end " (time(pause.until, admin.now())) "."
                        @if let Some(reason) = &pause.reason { " Reason: " (reason) "." }
                    },
                    None => p { "There is no pause." },
                }
                p.dim { "What waits is applied within seconds." }
            },
            fields: html! {},
            button: pause.is_some().then_some("Resume"),
            is_final: false,
            action: "/resume",
            parameters: &Parameters::default(),
            back: &back(&parameters),
        };
        Ok(question.show())
    };
    answer(&admin, Tab::Overview, title, content.await)
}

pub(super) async fn resume(State(admin): State<Admin>, body: Body) -> Response {
    let resumed = async {
        let parameters = Parameters::filled(&self::body(body).await?);
        pausing::resume(admin.pool(), &admin.actor()).await?;
        Ok(done(&parameters, "resume", &[]))
    };
    led(&admin, resumed.await)
}

pub(super) async fn ask_login(State(admin): State<Admin>) -> Response {
    if admin.guard().has_token() {
        page::login(&admin, "/", false, false)
    } else {
        lead_to("/")
    }
}

pub(super) async fn login(State(admin): State<Admin>, headers: HeaderMap, body: Body) -> Response {
    let parameters = match self::body(body).await {
        Ok(body) => Parameters::parse(&body),
        Err(problem) => return page::failure(&admin, &problem),
    };
    let next = parameters.get("next").unwrap_or("/").to_owned();
    let next = back(&Parameters::default().with("back", next));
    let given = parameters.get("token").unwrap_or_default().trim();
    if !admin.guard().has_token() {
        return lead_to("/");
    }
    if !admin.guard().is_token(given).await {
        return page::login(&admin, &next, true, false);
    }
    let session = admin.guard().open_session(&headers, admin.now());
    let mut response = lead_to(&next);
    response.headers_mut().insert(SET_COOKIE, session);
    response
}

pub(super) async fn logout(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let ended = admin.guard().end_session(&headers);
    let mut response = lead_to("/");
    response.headers_mut().insert(SET_COOKIE, ended);
    response
}
