//! TLS: whom each side trusts.

use std::{path::Path, process::Command, time::Duration};

use mcp_adapter_conformance::{faults::free_port, server::Redis};
use mcp_adapter_redis::RedisOptions;
use tokio::time::Instant;

use super::{refused, stores};

/// Certificates of one authority, as files of a folder.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = [
            "req", "-x509", "-new", "-nodes", "-days", "1", "-newkey", "ec",
        ];
        let mut args = own.to_vec();
        args.extend([
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-subj",
            "/CN=authority",
        ]);
        args.extend(["-keyout", "ca.key", "-out", "ca.pem"]);
        openssl(folder.path(), &args);
        let authority = Self(folder);
        authority.certify("server", "subjectAltName=DNS:localhost,IP:127.0.0.1");
        authority.certify("client", "extendedKeyUsage=clientAuth");
        authority
    }

    fn certify(&self, name: &str, extension: &str) {
        let folder = self.0.path();
        std::fs::write(folder.join("extension"), extension).unwrap();
        let (key, csr, pem) = (
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.pem"),
        );
        let subject = format!("/CN={name}");
        let mut args = vec!["req", "-new", "-nodes", "-newkey", "ec"];
        args.extend([
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-subj",
            &subject,
        ]);
        args.extend(["-keyout", &key, "-out", &csr]);
        openssl(folder, &args);
        let mut args = vec!["x509", "-req", "-days", "1", "-in", &csr, "-out", &pem];
        args.extend(["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]);
        args.extend(["-extfile", "extension"]);
        openssl(folder, &args);
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// A server with TLS on a port of its own.
    fn server(&self, clients: &str, more: &[&str]) -> (Redis, u16) {
        self.server_as("server", clients, more)
    }

    fn server_as(&self, name: &str, clients: &str, more: &[&str]) -> (Redis, u16) {
        let port = free_port().unwrap();
        let (ca, cert, key) = (
            self.file("ca.pem"),
            self.file(&format!("{name}.pem")),
            self.file(&format!("{name}.key")),
        );
        let number = port.to_string();
        let mut args = vec!["--tls-port", &number, "--tls-auth-clients", clients];
        args.extend(["--tls-cert-file", &cert, "--tls-key-file", &key]);
        args.extend(["--tls-ca-cert-file", &ca]);
        args.extend(more);
        (Redis::start(&args).unwrap(), port)
    }
}

fn openssl(folder: &Path, args: &[&str]) {
    let made = Command::new("openssl")
        .current_dir(folder)
        .args(args)
        .output();
    let made = made.unwrap();
    let text = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{args:?}: {text}");
}

fn options(port: u16, protocol: &str) -> RedisOptions {
    RedisOptions::new(&format!("rediss://localhost:{port}?protocol={protocol}")).unwrap()
}

#[tokio::test]
async fn a_server_is_trusted_by_the_authority_that_is_given() {
    let (ours, others) = (Authority::new(), Authority::new());
    let (_server, port) = ours.server("no", &[]);
    for protocol in ["resp2", "resp3"] {
        stores(options(port, protocol).with_ca_file(ours.file("ca.pem"))).await;
        for untrusted in [
            options(port, protocol),
            options(port, protocol).with_ca_file(others.file("ca.pem")),
        ] {
            let text = refused(untrusted).await;
            assert!(text.contains("certificate"), "{text}");
            assert!(text.contains("with_ca_file"), "{text}");
        }
    }
    // One of the same authority that has another name.
    ours.certify("elsewhere", "subjectAltName=DNS:elsewhere");
    let (_server, port) = ours.server_as("elsewhere", "no", &[]);
    let text = refused(options(port, "resp3").with_ca_file(ours.file("ca.pem"))).await;
    assert!(text.contains("certificate"), "{text}");
}

/// Nodes are reached by addresses that the first one tells.
#[tokio::test]
async fn nodes_of_a_cluster_are_trusted_alike() {
    let ours = Authority::new();
    let cluster = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let (server, port) = ours.server("yes", &cluster);
    server
        .command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let ready = || {
        let info = server.command(&["CLUSTER", "INFO"]).unwrap();
        info.contains("cluster_state:ok")
    };
    while !ready() {
        assert!(Instant::now() < end, "the slots are not served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for url in [
        format!("rediss+cluster://localhost:{port}"),
        format!("rediss://localhost:{port}"),
    ] {
        let options = RedisOptions::new(&url).unwrap();
        let trusting = options.with_ca_file(ours.file("ca.pem"));
        let client = (ours.file("client.pem"), ours.file("client.key"));
        stores(trusting.clone().with_client_certificate(client.0, client.1)).await;
        refused(trusting).await;
    }
}

/// Both sides show a certificate.
#[tokio::test]
async fn a_client_shows_the_certificate_that_is_given() {
    let (ours, others) = (Authority::new(), Authority::new());
    let (_server, port) = ours.server("yes", &[]);
    for protocol in ["resp2", "resp3"] {
        let trusting = || options(port, protocol).with_ca_file(ours.file("ca.pem"));
        let with = |of: &Authority| {
            trusting().with_client_certificate(of.file("client.pem"), of.file("client.key"))
        };
        stores(with(&ours)).await;
        for refusing in [trusting(), with(&others)] {
            let text = refused(refusing).await;
            assert!(text.contains("client"), "{text}");
            assert!(text.contains("with_client_certificate"), "{text}");
        }
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let ours = Authority::new();
    let (_server, port) = ours.server("yes", &[]);
    let (ca, missing) = (ours.file("ca.pem"), ours.file("missing.pem"));
    let (client, key) = (ours.file("client.pem"), ours.file("client.key"));
    let of = |ca: &str, client: &str, key: &str| {
        let options = options(port, "resp3").with_ca_file(ca);
        options.with_client_certificate(client, key)
    };
    for (wrong, file) in [
        (of(&missing, &client, &key), &missing),
        (of(&key, &client, &key), &key),
        (of(&ca, &missing, &key), &missing),
        (of(&ca, &key, &key), &key),
        (of(&ca, &client, &missing), &missing),
        (of(&ca, &client, &ca), &ca),
    ] {
        let text = refused(wrong).await;
        assert!(text.contains(file.as_str()), "{text}");
    }
    // A key that is another certificate's.
    let text = refused(of(&ca, &client, &ours.file("server.key"))).await;
    assert!(text.contains("client.pem"), "{text}");
}

/// What nobody would look at is not taken in silence.
#[tokio::test]
async fn certificates_need_tls() {
    let ours = Authority::new();
    let server = Redis::start(&[]).unwrap();
    let plain = || RedisOptions::new(&server.url()).unwrap();
    let (client, key) = (ours.file("client.pem"), ours.file("client.key"));
    for wrong in [
        plain().with_ca_file(ours.file("ca.pem")),
        plain().with_client_certificate(client, key),
    ] {
        let text = refused(wrong).await;
        assert!(text.contains("rediss"), "{text}");
    }
}

#[tokio::test]
async fn a_port_without_tls_is_told_at_once() {
    let ours = Authority::new();
    let (plain, port) = ours.server("no", &[]);
    for protocol in ["resp2", "resp3"] {
        let asked = Instant::now();
        let port = plain.addr().port();
        let text = refused(options(port, protocol).with_ca_file(ours.file("ca.pem"))).await;
        assert!(text.contains("no TLS"), "{text}");
        assert!(
            asked.elapsed() < Duration::from_secs(3),
            "{:?}",
            asked.elapsed()
        );
    }
    // And the other way round.
    for protocol in ["resp2", "resp3"] {
        let url = format!("redis://localhost:{port}?protocol={protocol}");
        let error = super::connect(url).await.unwrap_err();
        assert!(error.to_string().contains("rediss"), "{error}");
    }
}
