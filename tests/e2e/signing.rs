//! `workos-sync sign FILE`: a header for curl, that `serve` accepts.

use std::process::{Command, Stdio};

use crate::support::service::answer;
use crate::support::{Folder, Kind, SECRET, Service, TestDatabase, event, run, run_with_input};

/// R29, section 8: the header of `sign FILE` and of `sign -` is taken by `serve`; the first of several secrets signs.
#[tokio::test]
async fn a_signed_file_is_accepted() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    // The secret alone is enough to sign.
    let secrets = format!("{SECRET},older");
    let variables = [("WORKOS_WEBHOOK_SECRET", secrets.as_str())];

    let body = event(1, Kind::Created, "org_a", "Café Zoë");
    let file = folder.write("event.json", &body);
    let signed = run(&folder, &variables, &["sign", &file]).await.assert(0);
    assert_eq!(signed.stderr, "");
    let sent = service.delivery_with(&body, signed.stdout.trim_end());
    assert_eq!(answer(sent).await["status"], "accepted");

    // The bytes as they are, a last newline too.
    let body = format!("{}\n", event(2, Kind::Updated, "org_a", "Zoë"));
    let signed = run_with_input(&folder, &variables, &["sign", "-"], &body)
        .await
        .assert(0);
    let sent = service.delivery_with(&body, signed.stdout.trim_end());
    assert_eq!(answer(sent).await["status"], "accepted");
}

/// R29, R30: a byte order mark at the start of a file costs nothing: it is signed, and sent, as the other bytes are.
#[tokio::test]
async fn a_signed_file_may_begin_with_a_byte_order_mark() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let body = format!("\u{feff}{}", event(1, Kind::Created, "org_a", "Acme"));
    let file = folder.write("event.json", &body);
    let variables = [("WORKOS_WEBHOOK_SECRET", SECRET)];
    let signed = run(&folder, &variables, &["sign", &file]).await.assert(0);
    let sent = service.delivery_with(&body, signed.stdout.trim_end());
    assert_eq!(answer(sent).await["status"], "accepted");
}

/// R29: the scheme is HMAC-SHA256 as everybody else computes it, with `t` in milliseconds.
#[tokio::test]
async fn a_signature_by_openssl_is_accepted() {
    let (folder, database) = (Folder::new(), TestDatabase::empty().await);
    let service = Service::on(&folder, &database).await;
    let body = event(1, Kind::Created, "org_a", "Acme");
    folder.write("event.json", &body);
    let script = r#"t="$(date +%s)000"
        { printf '%s.' "$t"; cat event.json; } | openssl dgst -sha256 -hmac "$1" |
        sed "s/^.*= */WorkOS-Signature: t=$t, v1=/""#;
    let signed = Command::new("sh")
        .args(["-c", script, "sh", SECRET])
        .current_dir(folder.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let header = String::from_utf8(signed.stdout).unwrap();
    let answer = answer(service.delivery_with(&body, header.trim_end())).await;
    assert_eq!(answer["status"], "accepted", "{header}");
}

/// Section 8: what can't be signed ends with one line that says why.
#[tokio::test]
async fn what_cannot_be_signed_is_said_in_one_line() {
    let folder = Folder::new();
    let missing = run(
        &folder,
        &[("WORKOS_WEBHOOK_SECRET", SECRET)],
        &["sign", "missing.json"],
    )
    .await
    .assert(1);
    assert!(missing.error_line().contains("missing.json"), "{missing:?}");

    let file = folder.write("event.json", "{}");
    let without = run(
        &folder,
        &[("DATABASE_URL", "postgres://localhost/app")],
        &["sign", &file],
    )
    .await
    .assert(2);
    assert_eq!(
        without.error_line(),
        "workos-sync: WORKOS_WEBHOOK_SECRET: required to sign"
    );
    let none = [("", ""); 0];
    let nothing = run(&folder, &none, &["sign", &file]).await.assert(2);
    assert_eq!(
        nothing.error_line(),
        "workos-sync: WORKOS_WEBHOOK_SECRET: not set, and `workos-sync serve` has made none in .workos-sync"
    );
    assert!(!folder.data("").exists(), "none was made");
}
