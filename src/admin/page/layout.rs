//! What every page has around it, and the pages that say no.

use axum::http::StatusCode;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};

use crate::admin::assets::{ICON, SCRIPT, STYLE};
use crate::admin::security::{LOGIN, LOGOUT};
use crate::admin::{Admin, form::Parameters};
use crate::event::rfc3339;
use crate::http::problem::Problem;

/// A page of the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Tab {
    Overview,
    Events,
    Causes,
    Organizations,
    Runs,
    Actions,
}

impl Tab {
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Overview, "/", "Overview"),
        (Self::Events, "/events", "Events"),
        (Self::Causes, "/causes", "Causes"),
        (Self::Organizations, "/organizations", "Organizations"),
        (Self::Runs, "/runs", "Runs"),
        (Self::Actions, "/actions", "Actions"),
    ];
}

/// A whole page.
pub(in crate::admin) struct Page<'a> {
    pub(in crate::admin) admin: &'a Admin,
    pub(in crate::admin) now: DateTime<Utc>,
    pub(in crate::admin) title: &'a str,
    pub(in crate::admin) tab: Option<Tab>,
}

impl Page<'_> {
    /// The page around its content.
    pub(in crate::admin) fn show(&self, content: &Markup) -> Markup {
        let admin = self.admin;
        // Without the commit.
        let version = crate::VERSION.split(' ').next().unwrap_or_default();
        document(
            self.title,
            self.now,
            false,
            &html! {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    strong { a href="/" { "workos-sync" } }
                    nav aria-label="Pages" {
                        @for (tab, href, name) in Tab::ALL {
                            a href=(href) aria-current=[(self.tab == Some(tab)).then_some("page")] { (name) }
                        }
                    }
                    span.where {
                        (admin.database()) " · " span title=(crate::VERSION) { (version) }
                        @if admin.guard().read_only { " · read only" }
                    }
                    @if admin.guard().has_token() {
                        form method="post" action=(LOGOUT) { button { "Sign out" } }
                    }
                }
                main #main tabindex="-1" {
                    (content)
                }
                p #said .unseen role="status" {}
            },
        )
    }
}

/// A heading of what is kept up to date: it says so, and stops that.
pub(in crate::admin) fn live_heading(heading: &Markup) -> Markup {
    html! {
        div.head {
            (heading)
            span.scripted {
                span #refresh-state .dim role="status" {}
                button #refresh-pause type="button" { "Pause refresh" }
            }
        }
    }
}

/// A document. A detour is asked for again at once.
fn document(title: &str, now: DateTime<Utc>, is_detour: bool, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if is_detour { meta http-equiv="refresh" content="0"; }
                title { (title) " · workos-sync" }
                link rel="icon" type="image/svg+xml" href=(ICON.path);
                link rel="stylesheet" href=(STYLE.path);
                script src=(SCRIPT.path) defer {}
            }
            body data-now=(rfc3339(now)) { (body) }
        }
    }
}

/// A refusal, as a page.
pub(in crate::admin) fn failure(admin: &Admin, problem: &Problem) -> Response {
    let status = problem.status();
    let title = match status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::BAD_REQUEST => "This can't be asked",
        StatusCode::FORBIDDEN => "Not allowed",
        StatusCode::METHOD_NOT_ALLOWED => "Not this way",
        StatusCode::SERVICE_UNAVAILABLE => "No answer",
        _ => "Something went wrong",
    };
    let page = Page {
        admin,
        now: admin.now(),
        title,
        tab: None,
    };
    let content = html! {
        h1 { (title) }
        p { (as_sentence(problem.detail())) }
        p { a href="/" { "To the overview" } }
    };
    (status, page.show(&content)).into_response()
}

/// The form that asks for the token. A link from elsewhere comes without the cookie of a session: what this page itself
/// asks for has it, so that a detour leads into the session.
pub(in crate::admin) fn login(
    admin: &Admin,
    next: &str,
    is_wrong: bool,
    is_detour: bool,
) -> Response {
    let body = html! {
        main #main {
            div.ask {
                h1 { "Sign in to workos-sync" }
                form.box method="post" action=(LOGIN) {
                    @if is_wrong { p #wrong .problem role="alert" { "This is not the token." } }
                    input type="hidden" name="next" value=(next);
                    // For password managers, which keep a token by the name of an account.
                    input type="text" name="username" value="workos-sync" autocomplete="username" hidden;
                    label {
                        "Token: the value of ADMIN_TOKEN"
                        input type="password" name="token" autocomplete="current-password" required autofocus
                            aria-describedby=[is_wrong.then_some("wrong")];
                    }
                    p.choice { button.main { "Sign in" } }
                }
            }
        }
    };
    let page = document("Sign in", admin.now(), is_detour, &body);
    let challenge = [(WWW_AUTHENTICATE, "Bearer realm=\"workos-sync\"")];
    (StatusCode::UNAUTHORIZED, challenge, page).into_response()
}

/// What an action asks before it is done: a page of its own, or, with the script, a dialog.
pub(in crate::admin) struct Question<'a> {
    pub(in crate::admin) title: &'a str,
    pub(in crate::admin) text: Markup,
    pub(in crate::admin) fields: Markup,
    /// What the button says: the action and its count. None where there is nothing to do.
    pub(in crate::admin) button: Option<&'a str>,
    pub(in crate::admin) is_final: bool,
    pub(in crate::admin) action: &'a str,
    /// What is acted on.
    pub(in crate::admin) parameters: &'a Parameters,
    /// Where to go back to.
    pub(in crate::admin) back: &'a str,
}

impl Question<'_> {
    pub(in crate::admin) fn show(&self) -> Markup {
        html! {
            section #question .ask {
                h1 #question-title { (self.title) }
                form.box method="post" action=(self.action) {
                    (self.text)
                    @for (name, value) in self.parameters.iter() {
                        input type="hidden" name=(name) value=(value);
                    }
                    input type="hidden" name="back" value=(self.back);
                    (self.fields)
                    p.choice {
                        @if let Some(button) = self.button {
                            button.main[!self.is_final].danger[self.is_final] { (button) }
                        }
                        a.button href=(self.back) data-cancel { "Cancel" }
                    }
                }
            }
        }
    }
}

/// A sentence of a person's: errors begin small and end without a full stop.
pub(super) fn as_sentence(detail: &str) -> String {
    let mut characters = detail.chars();
    let first = characters.next().map(char::to_uppercase);
    let mut text: String = first.into_iter().flatten().chain(characters).collect();
    if !text.ends_with(['.', '?', '!']) {
        text.push('.');
    }
    text
}
