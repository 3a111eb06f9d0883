//! Certificates, and servers that speak no TLS.

use std::path::{Path, PathBuf};

use mcp_adapter_core::Result;
use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, TlsCertificates};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{error::unusable, options::Setup};

/// Files that are read when an adapter connects.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// Authorities, in place of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// A certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

impl Files {
    /// The same servers, trusted and addressed with these certificates.
    pub(crate) async fn apply(&self, setup: Setup) -> Result<Setup> {
        if self.ca.is_none() && self.client.is_none() {
            return Ok(setup);
        }
        if !setup.is_tls() {
            return Err(unusable(
                "certificates need TLS: `rediss` in place of `redis` in the URL",
            ));
        }
        let files = self.clone();
        let read = tokio::task::spawn_blocking(move || files.read());
        let certificates = read
            .await
            .map_err(|error| unusable("the certificates cannot be read").with_source(error))??;
        setup.map(|info| {
            let client = Client::build_with_tls(info, certificates.clone());
            let client = client
                .map_err(|error| unusable("a certificate cannot be used").with_source(error))?;
            Ok(client.get_connection_info().clone())
        })
    }

    fn read(&self) -> Result<TlsCertificates> {
        let root_cert = self.ca.as_deref().map(certificates).transpose()?;
        let client = self.client.as_ref();
        let client_tls = client.map(|(cert, key)| pair(cert, key)).transpose()?;
        Ok(TlsCertificates {
            client_tls,
            root_cert,
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| {
        unusable(format!("{} cannot be read: {error}", file.display())).with_source(error)
    })
}

/// A file with certificates, and nothing in it that is none.
fn certificates(file: &Path) -> Result<Vec<u8>> {
    let pem = read(file)?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| {
            unusable(format!("{} is no PEM: {error}", file.display())).with_source(error)
        })?;
        count += 1;
    }
    if count == 0 {
        let file = file.display();
        return Err(unusable(format!("{file} has no certificate in PEM")));
    }
    Ok(pem)
}

fn pair(cert: &Path, key: &Path) -> Result<ClientTlsConfig> {
    let client_cert = certificates(cert)?;
    let client_key = read(key)?;
    let private = PrivateKeyDer::from_pem_slice(&client_key).map_err(|error| {
        // Nothing of the key itself.
        unusable(format!("{} has no private key in PEM", key.display())).with_source(error)
    })?;
    let chain = CertificateDer::pem_slice_iter(&client_cert)
        .filter_map(std::result::Result::ok)
        .collect();
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
    config
        .with_client_auth_cert(chain, private)
        .map_err(|error| {
            let (cert, key) = (cert.display(), key.display());
            let message = format!("{cert} and {key} are not a certificate and its key: {error}");
            unusable(message).with_source(error)
        })?;
    Ok(ClientTlsConfig {
        client_cert,
        client_key,
    })
}

/// Ends where the server at this address speaks no TLS, and in no other case: such a
/// server waits for the end of what it takes for a command, and would let the
/// handshake wait for its deadline.
pub(crate) async fn speaks_plainly(info: &ConnectionInfo) {
    if answers_plainly(info).await.unwrap_or(false) {
        return;
    }
    std::future::pending().await
}

async fn answers_plainly(info: &ConnectionInfo) -> std::io::Result<bool> {
    let ConnectionAddr::TcpTls { host, port, .. } = info.addr() else {
        return Ok(false);
    };
    let mut stream = TcpStream::connect((&**host, *port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut first = [0];
    let read = stream.read(&mut first).await?;
    // What a Redis server answers, whether it lets us in or not.
    Ok(read == 1 && matches!(first[0], b'+' | b'-'))
}
