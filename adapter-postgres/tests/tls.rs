//! What each `sslmode` does, with a server that has no TLS and with one that has.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use common::{Setting, limits, number, sql};
use mcp_adapter_core::SessionAdapter;
use mcp_adapter_postgres::{ConnectError, PostgresAdapter, sqlx::PgConnection};
use tokio::time::{Instant, sleep};

/// Runs `openssl` with these words.
fn openssl(folder: &Path, words: &str) {
    let made = Command::new("openssl")
        .current_dir(folder)
        .args(words.split(' '))
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "openssl {words}: {why}");
}

/// An authority, and what it has signed: a server named `localhost`, a client that is
/// the user `postgres`.
fn certify(folder: &Path) {
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for authority in ["ca", "other"] {
        openssl(
            folder,
            &format!(
                "req -x509 {KEY} -keyout {authority}.key -out {authority}.crt -days 1 -subj /CN={authority}"
            ),
        );
    }
    for (name, subject) in [("server", "localhost"), ("client", "postgres")] {
        openssl(
            folder,
            &format!("req -new {KEY} -keyout {name}.key -out {name}.csr -subj /CN={subject}"),
        );
        let extensions = format!("subjectAltName=DNS:{subject}\nbasicConstraints=CA:FALSE\n");
        fs::write(folder.join("extensions"), extensions).unwrap();
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 1 -extfile extensions"
            ),
        );
    }
}

/// A file of the server's, which nobody else may read.
fn give(setting: &mut Setting, name: &str, text: impl AsRef<[u8]>) {
    use std::os::unix::fs::{PermissionsExt, chown};
    let data = setting.server.program().folder().join("data");
    let owner = fs::metadata(&data).unwrap();
    let file = data.join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// Reads its settings anew; `there` says that it has.
async fn reload(admin: &mut PgConnection, there: &str) {
    sql(admin, "SELECT pg_reload_conf()").await;
    let end = Instant::now() + common::NOTICED;
    while number(admin, &format!("SELECT ({there})::integer::bigint")).await == 0 {
        assert!(Instant::now() < end, "{there}");
        sleep(std::time::Duration::from_millis(5)).await;
    }
}

struct Tls {
    setting: Setting,
    admin: PgConnection,
    folder: tempfile::TempDir,
    opened: usize,
}

impl Tls {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        certify(folder.path());
        let setting = Setting::start(&[]).await;
        let admin = setting.admin().await;
        Self {
            setting,
            admin,
            folder,
            opened: 0,
        }
    }

    async fn turn_on(&mut self) {
        for name in ["server.crt", "server.key", "ca.crt"] {
            let text = fs::read(self.folder.path().join(name)).unwrap();
            give(&mut self.setting, name, text);
        }
        for (name, value) in [
            ("ssl_cert_file", "server.crt"),
            ("ssl_key_file", "server.key"),
            ("ssl_ca_file", "ca.crt"),
            ("ssl", "on"),
        ] {
            let set = format!("ALTER SYSTEM SET {name} = '{value}'");
            sql(&mut self.admin, set).await;
        }
        reload(&mut self.admin, "current_setting('ssl') = 'on'").await;
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Whether all connections of an adapter with these parameters are encrypted; they
    /// all are, or none is.
    async fn is_encrypted(&mut self, parameters: &str) -> Result<bool, ConnectError> {
        self.is_encrypted_at("127.0.0.1", parameters).await
    }

    async fn is_encrypted_at(
        &mut self,
        host: &str,
        parameters: &str,
    ) -> Result<bool, ConnectError> {
        self.opened += 1;
        let name = format!("opened {}", self.opened);
        let url = self.setting.url.replace("127.0.0.1", host);
        let url = format!("{url}?application_name={name}&{parameters}");
        let adapter = PostgresAdapter::connect(&url, limits()).await?;
        adapter.stats().await.unwrap();
        assert!(!adapter.polls(), "it listens, too");
        let count = |ssl: &str| {
            format!(
                "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
                 WHERE a.application_name = '{name}' AND {ssl}"
            )
        };
        let encrypted = number(&mut self.admin, &count("s.ssl")).await;
        let plain = number(&mut self.admin, &count("NOT s.ssl")).await;
        assert!(encrypted + plain >= 2, "one that listens, and others");
        assert!(encrypted == 0 || plain == 0, "{encrypted} and {plain}");
        Ok(encrypted > 0)
    }

    async fn is_refused(&mut self, parameters: &str) {
        let refused = self.is_encrypted(parameters).await;
        assert!(
            matches!(refused, Err(ConnectError::Tls(_))),
            "{parameters}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_does_what_the_documents_say() {
    let mut tls = Tls::start().await;
    for mode in ["", "sslmode=disable", "sslmode=allow", "sslmode=prefer"] {
        assert!(!tls.is_encrypted(mode).await.unwrap(), "{mode}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        tls.is_refused(&format!("sslmode={mode}")).await;
    }
    tls.turn_on().await;
    for mode in ["sslmode=disable", "sslmode=allow"] {
        assert!(!tls.is_encrypted(mode).await.unwrap(), "{mode}");
    }
    // Whoever signed the server's certificate.
    let other = format!("sslrootcert={}", tls.file("other.crt"));
    for mode in ["", "sslmode=prefer", "sslmode=require"] {
        for mode in [mode.to_owned(), format!("{mode}&{other}")] {
            assert!(tls.is_encrypted(&mode).await.unwrap(), "{mode}");
        }
    }
    let ca = format!("sslrootcert={}", tls.file("ca.crt"));
    for mode in ["sslmode=verify-ca", "sslmode=verify-full"] {
        tls.is_refused(mode).await;
        tls.is_refused(&format!("{mode}&{other}")).await;
    }
    let authority = format!("sslmode=verify-ca&{ca}");
    assert!(tls.is_encrypted(&authority).await.unwrap());
    let full = format!("sslmode=verify-full&{ca}");
    tls.is_refused(&full).await;
    assert!(tls.is_encrypted_at("localhost", &full).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_proves_who_it_is() {
    let mut tls = Tls::start().await;
    tls.turn_on().await;
    let rules = "hostssl all all 127.0.0.1/32 cert\n";
    give(&mut tls.setting, "pg_hba.conf", rules);
    let there = "SELECT count(*) = 1 FROM pg_hba_file_rules WHERE auth_method = 'cert'";
    reload(&mut tls.admin, &format!("({there})")).await;
    for parameters in ["sslmode=require", "sslmode=disable"] {
        let refused = tls.is_encrypted(parameters).await;
        assert!(
            matches!(refused, Err(ConnectError::Login(_))),
            "{parameters}: {refused:?}"
        );
    }
    let (cert, key) = (tls.file("client.crt"), tls.file("client.key"));
    let parameters = format!("sslmode=require&sslcert={cert}&sslkey={key}");
    assert!(tls.is_encrypted(&parameters).await.unwrap());
}
