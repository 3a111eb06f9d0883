//! `rediss://` with no provider of rustls chosen by anybody else. The test runs
//! itself again with the certificate as the only one that is trusted.

mod with_tls {
    use std::{error::Error, path::Path, process::Command};

    use mcp_adapter_conformance::{faults::free_port, server::Redis};
    use mcp_adapter_core::{Limits, SessionAdapter, SessionId, SessionRecord};
    use mcp_adapter_redis::RedisAdapter;

    const URL: &str = "MCP_ADAPTER_TEST_REDISS_URL";

    pub(super) fn run() -> Result<(), Box<dyn Error>> {
        if let Ok(url) = std::env::var(URL) {
            return tokio::runtime::Runtime::new()?.block_on(connect(&url));
        }
        let folder = tempfile::tempdir()?;
        certify(folder.path())?;
        let file = |name: &str| folder.path().join(name).display().to_string();
        let port = free_port()?;
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        let server = Redis::start(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &cert,
            "--tls-auth-clients",
            "no",
        ])?;
        for protocol in ["resp2", "resp3"] {
            let status = Command::new(std::env::current_exe()?)
                .env(
                    URL,
                    format!("rediss://localhost:{port}?protocol={protocol}"),
                )
                .env("SSL_CERT_FILE", &cert)
                .status()?;
            if !status.success() {
                return Err(format!("{protocol}: {status}").into());
            }
        }
        drop(server);
        Ok(())
    }

    fn certify(folder: &Path) -> Result<(), Box<dyn Error>> {
        let made = Command::new("openssl")
            .current_dir(folder)
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args([
                "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "1",
            ])
            .args([
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
            ])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .output()?;
        if made.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&made.stderr).into())
    }

    async fn connect(url: &str) -> Result<(), Box<dyn Error>> {
        let adapter = RedisAdapter::connect(url, Limits::default()).await?;
        let id = SessionId::generate();
        SessionAdapter::create(&adapter, &id, SessionRecord::default()).await?;
        adapter.enter(&id, None, None).await?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    with_tls::run()
}
