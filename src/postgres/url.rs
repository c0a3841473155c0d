//! `DATABASE_URL`: what it may say, and what of it may be repeated (R35).
//!
//! sqlx reads connection strings too, but it takes any scheme, logs the value of a parameter that it doesn't know,
//! and takes a piece of a password with an unescaped `/` for the host, which errors then name. So the string is
//! taken apart here, and sqlx gets what it knows. Errors and warnings name parameters, and repeat no value.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;
use url::form_urlencoded;

/// A database, as `DATABASE_URL` names it. Displayed, it says where that is: `app at db.internal:5432`.
#[derive(Clone)]
pub struct DatabaseUrl {
    /// How to connect.
    pub options: PgConnectOptions,
    /// `?schema=NAME`: the schema to look into first (R32).
    pub schema: Option<String>,
    /// The names of parameters that are not known, and have no effect.
    pub ignored: Vec<String>,
    /// The files that a TLS connection reads, each with the parameter that names it.
    tls_files: Vec<(&'static str, PathBuf)>,
}

/// Why a string names no database that can be connected to. No variant holds a value of the string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It isn't a URL.
    #[error("expected a URL: postgres://user:password@host:5432/database")]
    NotAUrl,
    /// It is the URL of something else.
    #[error("expected postgres:// or postgresql://, not {0}://")]
    Scheme(String),
    /// A character ends a part of the URL too early, or begins no escape.
    #[error(
        "characters such as @ / ? # % in a user name, password or parameter must be percent-encoded: %40 %2F %3F %23 %25"
    )]
    Unescaped,
    /// It names more than one host, address or port.
    #[error("several hosts are not supported: expected one")]
    SeveralHosts,
    /// What stands in the place of the host is none.
    #[error(
        "expected a host name, an IP address (IPv6 in brackets) or a socket directory (/ as %2F)"
    )]
    Host,
    /// What follows the host is no port.
    #[error("expected a port from 1 to 65535 after the host, and an IPv6 address in brackets")]
    Port,
    /// A part, once decoded, is nothing that a server could be sent.
    #[error("the {0} is not UTF-8 text, or holds control characters")]
    Text(&'static str),
    /// A parameter has a value that it can't have.
    #[error("{name}: expected {expected}")]
    Parameter {
        /// The parameter.
        name: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A parameter may have been meant to protect the connection.
    #[error(
        "{0} is unknown, and ignoring it could weaken the connection: expected sslmode, sslrootcert, sslcert or sslkey"
    )]
    UnknownTls(String),
}

/// A file of a TLS connection that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{parameter}: {problem}")]
pub struct TlsFileError {
    parameter: &'static str,
    problem: String,
}

impl DatabaseUrl {
    /// Reads a connection string.
    ///
    /// # Errors
    /// It is none, or asks for what can't be done.
    pub fn parse(url: &SecretString) -> Result<Self, UrlError> {
        let rest = behind_the_scheme(url.expose_secret().trim())?;
        check_escapes(rest)?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        // Such an `@` is one of a password, or the end of one: then host or path are a piece of it.
        if login.contains('@') || rest.contains('@') {
            return Err(UrlError::Unescaped);
        }
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = host_and_port(place)?;
        let database = path.trim_start_matches('/');
        let mut parameters = vec![
            ("host".to_owned(), host),
            ("port".to_owned(), port.to_owned()),
            ("user".to_owned(), decode(user, "user name")?),
            ("password".to_owned(), decode(password, "password")?),
            ("dbname".to_owned(), decode(database, "database name")?),
        ];

        let (mut schema, mut ignored) = (None, Vec::new());
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let name = canonical(&name);
            if name == "schema" {
                schema = Some(value.into_owned());
            } else if is_known(name) {
                check_parameter(name, &value)?;
                parameters.push((name.to_owned(), value.into_owned()));
            } else if name.to_ascii_lowercase().starts_with("ssl") {
                return Err(UrlError::UnknownTls(name.to_owned()));
            } else {
                ignored.push(name.to_owned());
            }
        }
        // An empty one is as good as none.
        parameters.retain(|(_, value)| !value.is_empty());

        let tls_file = |name| Some((name, PathBuf::from(last(&parameters, name)?)));
        Ok(Self {
            options: connect_options(&parameters)?,
            schema: schema.filter(|schema| !schema.is_empty()),
            ignored,
            tls_files: ["sslrootcert", "sslcert", "sslkey"]
                .into_iter()
                .filter_map(tls_file)
                .collect(),
        })
    }

    /// Reads the certificates and the key that a connection will need. A connection that misses one says so too,
    /// but names neither file nor parameter.
    ///
    /// # Errors
    /// One of them can't be used.
    pub fn check_tls_files(&self) -> Result<(), TlsFileError> {
        if matches!(
            self.options.get_ssl_mode(),
            PgSslMode::Disable | PgSslMode::Allow
        ) {
            return Ok(());
        }
        for (parameter, path) in &self.tls_files {
            let (read, content) = match *parameter {
                "sslkey" => (PrivateKeyDer::from_pem_file(path).map(drop), "private key"),
                _ => (certificates(path), "certificate"),
            };
            read.map_err(|error| TlsFileError {
                parameter,
                problem: match error {
                    pem::Error::Io(error) => format!("the file can't be read: {error}"),
                    _ => format!("the file holds no {content} in PEM form"),
                },
            })?;
        }
        Ok(())
    }
}

/// Where it is. Neither user nor password are in it; the user's name is, where it is the database's too.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        let (host, port) = (options.get_host(), options.get_port());
        match socket_directory(options) {
            Some(directory) => write!(
                f,
                "{database} at the socket directory {}",
                directory.display()
            ),
            None if host.contains(':') => write!(f, "{database} at [{host}]:{port}"),
            None => write!(f, "{database} at {host}:{port}"),
        }
    }
}

/// Not derived: that of the options has the password.
impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

fn behind_the_scheme(url: &str) -> Result<&str, UrlError> {
    let (scheme, rest) = url.split_once("://").ok_or(UrlError::NotAUrl)?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b));
    match scheme.to_ascii_lowercase().as_str() {
        "postgres" | "postgresql" => Ok(rest),
        _ if is_scheme => Err(UrlError::Scheme(scheme.to_owned())),
        // Not to be named: it may be a piece of anything.
        _ => Err(UrlError::NotAUrl),
    }
}

/// Finds what can only be meant literally: a connection string has no fragment, and a `%` begins an escape.
fn check_escapes(text: &str) -> Result<(), UrlError> {
    let begins_with_hex =
        |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    if text.contains('#') || !text.split('%').skip(1).all(begins_with_hex) {
        return Err(UrlError::Unescaped);
    }
    Ok(())
}

fn decode(part: &str, what: &'static str) -> Result<String, UrlError> {
    let text = percent_decode_str(part).decode_utf8();
    text.ok()
        .filter(|text| !text.contains(char::is_control))
        .map(String::from)
        .ok_or(UrlError::Text(what))
}

/// The host, or what stands in its place, and the port. Either may be empty.
fn host_and_port(place: &str) -> Result<(String, &str), UrlError> {
    if place.contains(',') {
        return Err(UrlError::SeveralHosts);
    }
    let (host, port) = if let Some(literal) = place.strip_prefix('[') {
        let (literal, port) = literal.split_once(']').ok_or(UrlError::Host)?;
        let host = decode(literal, "host")?;
        // Behind a `%`, the interface of a link-local address.
        let address = host.split('%').next().unwrap_or_default();
        address.parse::<Ipv6Addr>().map_err(|_| UrlError::Host)?;
        (host, port)
    } else {
        let (host, port) = place.split_at(place.find(':').unwrap_or(place.len()));
        let host = decode(host, "host")?;
        if !host.starts_with('/') && host.contains(['/', ' ', '[', ']']) {
            return Err(UrlError::Host);
        }
        (host, port)
    };
    match port.strip_prefix(':') {
        Some(port) if port.is_empty() || is_port(port) => Ok((host, port)),
        None if port.is_empty() => Ok((host, port)),
        _ => Err(UrlError::Port),
    }
}

fn is_port(text: &str) -> bool {
    text.parse().is_ok_and(|port: u16| port > 0)
}

/// sqlx knows some parameters by several names.
fn canonical(name: &str) -> &str {
    match name {
        "ssl-mode" => "sslmode",
        "ssl-root-cert" | "ssl-ca" => "sslrootcert",
        "ssl-cert" => "sslcert",
        "ssl-key" => "sslkey",
        name => name,
    }
}

/// Whether sqlx has a use for the parameter.
fn is_known(name: &str) -> bool {
    const KNOWN: [&str; 13] = [
        "application_name",
        "dbname",
        "host",
        "hostaddr",
        "options",
        "password",
        "port",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "statement-cache-capacity",
        "user",
    ];
    KNOWN.contains(&name) || (name.starts_with("options[") && name.ends_with(']'))
}

fn check_parameter(name: &str, value: &str) -> Result<(), UrlError> {
    let expected = match name {
        "host" | "hostaddr" | "port" if value.contains(',') => return Err(UrlError::SeveralHosts),
        "sslmode" if value.parse::<PgSslMode>().is_err() => {
            "disable, allow, prefer, require, verify-ca or verify-full"
        }
        _ if value.is_empty() => return Ok(()),
        "hostaddr" if value.parse::<IpAddr>().is_err() => "an IP address",
        "port" if !is_port(value) => "a port from 1 to 65535",
        "statement-cache-capacity" if value.parse::<usize>().is_err() => "a number of statements",
        _ if value.contains(char::is_control) => "a value without control characters",
        _ => return Ok(()),
    };
    Err(UrlError::Parameter {
        name: name.to_owned(),
        expected,
    })
}

/// Has sqlx make its options of parameters that it knows: some of them have no setter.
fn connect_options(parameters: &[(String, String)]) -> Result<PgConnectOptions, UrlError> {
    let mut url = Url::parse("postgres://").map_err(|_| UrlError::NotAUrl)?;
    url.query_pairs_mut().extend_pairs(parameters);
    // What it could complain about was checked. Its error isn't shown: it may repeat a value.
    let options = PgConnectOptions::from_url(&url).map_err(|_| UrlError::NotAUrl)?;
    // PgBouncer refuses this start-up parameter, and we read no floating-point numbers.
    let mut options = options.extra_float_digits(None);
    if options.get_application_name().is_none() {
        options = options.application_name("workos-sync");
    }
    // As libpq has it. sqlx would ask a socket's server for TLS, which it never speaks there, and no CA.
    let mode = match options.get_ssl_mode() {
        _ if socket_directory(&options).is_some() => PgSslMode::Disable,
        PgSslMode::Require if last(parameters, "sslrootcert").is_some() => PgSslMode::VerifyCa,
        mode => mode,
    };
    Ok(options.ssl_mode(mode))
}

/// Of several parameters of one name, the last one counts.
fn last<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut named = parameters.iter().filter(|(known, _)| known == name);
    named.next_back().map(|(_, value)| value.as_str())
}

fn socket_directory(options: &PgConnectOptions) -> Option<&Path> {
    let host = Path::new(options.get_host());
    let default = host.is_absolute().then_some(host);
    options.get_socket().map(PathBuf::as_path).or(default)
}

/// Reads a file of certificates, at least one.
fn certificates(path: &Path) -> Result<(), pem::Error> {
    let certificates =
        CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, pem::Error>>()?;
    if certificates.is_empty() {
        return Err(pem::Error::NoItemsFound);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<DatabaseUrl, UrlError> {
        DatabaseUrl::parse(&SecretString::from(url))
    }

    fn place(url: &str) -> String {
        parse(url)
            .unwrap_or_else(|error| panic!("{url}: {error}"))
            .to_string()
    }

    /// R35: every way to name a place, and how it is called.
    #[test]
    fn a_place_is_named_without_user_and_password() {
        for (url, expected) in [
            (
                "postgres://me:hunter2@db.internal/app",
                "app at db.internal:5432",
            ),
            ("postgresql://me@10.0.0.1:6432/app", "app at 10.0.0.1:6432"),
            (" POSTGRES://me@h/app\n", "app at h:5432"),
            ("postgres://me@h:/app?sslmode=disable", "app at h:5432"),
            ("postgres://me@[::1]:5433/app", "app at [::1]:5433"),
            ("postgres://[2001:db8::7]/app", "app at [2001:db8::7]:5432"),
            (
                "postgres://[fe80::1%25eth0]/app",
                "app at [fe80::1%eth0]:5432",
            ),
            (
                "postgres:///app?hostaddr=::1&port=5433",
                "app at [::1]:5433",
            ),
            (
                "postgres://me@%2Frun%2Fpostgresql/app",
                "app at the socket directory /run/postgresql",
            ),
            (
                "postgres://me:hunter2@/app?host=/run/postgresql",
                "app at the socket directory /run/postgresql",
            ),
            (
                "postgres://ignored:1/ignored?host=h&port=2&user=me&dbname=a%20b",
                "a b at h:2",
            ),
        ] {
            assert_eq!(place(url), expected, "{url}");
            assert_eq!(
                format!("{:?}", parse(url).unwrap()),
                format!("DatabaseUrl({expected})")
            );
        }
    }

    /// R35: what sqlx gets is what was meant, escapes decoded.
    #[test]
    fn every_part_arrives() {
        let url = parse(
            "postgres://a%40b:p%40ss%2Fw%3Fo%23r%25d@[::1]:5433/my%20app?application_name=mine&sslmode=require\
             &options=-c%20geqo%3Doff&options[search_path]=x&statement-cache-capacity=7",
        )
        .unwrap();
        let options = url.options;
        assert_eq!(options.get_host(), "::1");
        assert_eq!(options.get_port(), 5433);
        assert_eq!(options.get_username(), "a@b");
        assert_eq!(options.get_database(), Some("my app"));
        assert_eq!(options.get_application_name(), Some("mine"));
        assert_eq!(options.get_options(), Some("-c geqo=off -c search_path=x"));
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Require));
        let debug = format!("{options:?}");
        assert!(debug.contains("p@ss/w?o#r%d"), "the password: {debug}");
        assert!(debug.contains("statement_cache_capacity: 7"), "{debug}");
        assert!(debug.contains("extra_float_digits: None"), "{debug}");
        let ours = parse("postgres://h").unwrap().options;
        assert_eq!(ours.get_application_name(), Some("workos-sync"));
    }

    /// R32: Prisma's parameter is kept for whoever looks the table up.
    #[test]
    fn a_schema_is_handed_on() {
        for (url, schema) in [
            ("postgres://h/app?schema=tenants", Some("tenants")),
            (
                "postgres://h/app?schema=My%20Schema&sslmode=prefer",
                Some("My Schema"),
            ),
            ("postgres://h/app?schema=", None),
            ("postgres://h/app", None),
        ] {
            let url = parse(url).unwrap();
            assert_eq!(url.schema.as_deref(), schema);
            assert_eq!(url.options.get_options(), None, "no search path is set");
            assert!(url.ignored.is_empty());
        }
    }

    /// R35: what can't be meant so is refused by what is wrong with it, and nothing of it is repeated.
    #[test]
    fn a_wrong_url_is_refused_by_its_fault() {
        let unescaped = UrlError::Unescaped;
        let parameter = |name: &str, expected| UrlError::Parameter {
            name: name.to_owned(),
            expected,
        };
        for (url, expected) in [
            ("hunter2", UrlError::NotAUrl),
            ("host=hunter2 dbname=app", UrlError::NotAUrl),
            ("\"postgres://h/hunter2\"", UrlError::NotAUrl),
            (
                "mysql://me:hunter2@h/app",
                UrlError::Scheme("mysql".to_owned()),
            ),
            ("https://hunter2", UrlError::Scheme("https".to_owned())),
            (
                "postgresql+psycopg2://me:hunter2@h/app",
                UrlError::Scheme("postgresql+psycopg2".to_owned()),
            ),
            ("hunter2@://h", UrlError::NotAUrl),
            ("postgres://me:hunter2@hunter2@h/app", unescaped.clone()),
            ("postgres://me:hunter2/hunter2@h/app", unescaped.clone()),
            ("postgres://me:hunter2?hunter2@h/app", unescaped.clone()),
            ("postgres://me:hunter2?a=hunter2@h/app", unescaped.clone()),
            ("postgres://me:hunter2#hunter2@h/app", unescaped.clone()),
            (
                "postgres://me:hunter2@hunter2/hunter2#9@h/app",
                unescaped.clone(),
            ),
            ("postgres://me:100%hunter2@h/app", unescaped.clone()),
            ("postgres://me:hunter2%@h/app", unescaped.clone()),
            ("postgres://me:hunter2%2@h/app", unescaped),
            ("postgres://me:hunter2%00@h/app", UrlError::Text("password")),
            ("postgres://me:hunter2%ff@h/app", UrlError::Text("password")),
            (
                "postgres://me:hunter2\nhunter2@h/app",
                UrlError::Text("password"),
            ),
            ("postgres://me:hunter2@a,b/app", UrlError::SeveralHosts),
            ("postgres://me:hunter2@a:1,b:2/app", UrlError::SeveralHosts),
            (
                "postgres://me:hunter2@h/app?host=a,b",
                UrlError::SeveralHosts,
            ),
            (
                "postgres://me:hunter2@h/app?port=1,2",
                UrlError::SeveralHosts,
            ),
            ("postgres://me:hunter2", UrlError::Port),
            ("postgres://h:65536/app", UrlError::Port),
            ("postgres://h:0/app", UrlError::Port),
            ("postgres://::1/app", UrlError::Port),
            ("postgres://[::1]5432/app", UrlError::Port),
            ("postgres://[::1/app", UrlError::Host),
            ("postgres://[hunter2]/app", UrlError::Host),
            ("postgres://hunter2 hunter2/app", UrlError::Host),
            (
                "postgres://h/app?sslmode=no-verify",
                parameter(
                    "sslmode",
                    "disable, allow, prefer, require, verify-ca or verify-full",
                ),
            ),
            (
                "postgres://h/app?ssl-mode=",
                parameter(
                    "sslmode",
                    "disable, allow, prefer, require, verify-ca or verify-full",
                ),
            ),
            (
                "postgres://h/app?hostaddr=hunter2",
                parameter("hostaddr", "an IP address"),
            ),
            (
                "postgres://h/app?statement-cache-capacity=hunter2",
                parameter("statement-cache-capacity", "a number of statements"),
            ),
            (
                "postgres://h/app?dbname=hunter2%0A",
                parameter("dbname", "a value without control characters"),
            ),
            (
                "postgres://h/app?ssl=hunter2",
                UrlError::UnknownTls("ssl".to_owned()),
            ),
            (
                "postgres://h/app?sslaccept=strict",
                UrlError::UnknownTls("sslaccept".to_owned()),
            ),
            (
                "postgres://h/app?SSLMODE=verify-full",
                UrlError::UnknownTls("SSLMODE".to_owned()),
            ),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error, expected, "{url}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    /// R35: parameters of other programs do no harm, and are named.
    #[test]
    fn unknown_parameters_are_named() {
        let url =
            parse("postgres://h/app?pgbouncer=true&connect_timeout=hunter2&schema=x").unwrap();
        assert_eq!(url.ignored, ["pgbouncer", "connect_timeout"]);
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    /// R35: as libpq has it, a CA that is named is asked, also where only encryption is; and a socket is not
    /// encrypted.
    #[test]
    fn the_mode_of_tls_is_what_libpq_makes_of_it() {
        let mode = |parameters| {
            let url = parse(&format!("postgres://h/app?{parameters}")).unwrap();
            format!("{:?}", url.options.get_ssl_mode())
        };
        assert_eq!(mode("sslmode=require"), "Require");
        assert_eq!(mode("sslmode=require&sslrootcert=ca.pem"), "VerifyCa");
        assert_eq!(mode("sslmode=prefer&ssl-ca=ca.pem"), "Prefer");
        assert_eq!(mode("sslmode=verify-full&sslrootcert=ca.pem"), "VerifyFull");
        assert_eq!(mode("host=/run/postgresql&sslmode=require"), "Disable");
    }

    /// R35: a file that can't be used is told by the parameter that names it.
    #[test]
    fn tls_files_are_looked_at_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("hunter2.pem");
        std::fs::write(&text, "no certificate").unwrap();
        let (text, missing) = (text.display(), folder.path().join("hunter2"));
        let missing = missing.display();
        for (parameters, expected) in [
            (
                format!("sslmode=verify-full&sslrootcert={missing}"),
                "sslrootcert: the file can't be read: No such file or directory (os error 2)",
            ),
            (
                format!("sslrootcert={text}"),
                "sslrootcert: the file holds no certificate in PEM form",
            ),
            (
                format!("ssl-cert={text}&sslkey={text}"),
                "sslcert: the file holds no certificate in PEM form",
            ),
            (
                format!("sslkey={text}"),
                "sslkey: the file holds no private key in PEM form",
            ),
        ] {
            let url = parse(&format!("postgres://h/app?{parameters}")).unwrap();
            assert_eq!(url.check_tls_files().unwrap_err().to_string(), expected);
        }
        let unused = format!("postgres://h/app?sslmode=disable&sslrootcert={missing}");
        assert!(parse(&unused).unwrap().check_tls_files().is_ok());
    }
}
