//! Where the server is and how to talk to it.

#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::{fmt, sync::Arc, time::Duration};

use mcp_adapter_core::Result;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use crate::error::unusable;

/// Another address for one that the server tells: host and port.
pub(crate) type AddressMap = dyn Fn(&str, u16) -> (String, u16) + Send + Sync;

#[derive(Debug, Clone)]
pub(crate) enum Setup {
    /// One server, or a node of a Cluster.
    Server(ConnectionInfo),
    /// The nodes to begin with.
    Cluster(Vec<ConnectionInfo>),
    /// Sentinels, the master's name, and how to talk to the master.
    Sentinel(Vec<ConnectionInfo>, String, ConnectionInfo),
}

/// Where the server is and how to talk to it.
///
/// From text it is one of
///
/// - `redis://[user:password@]host:port[/db][?protocol=resp3]`: one server. A
///   node of a Cluster is recognised.
/// - `redis+cluster://[user:password@]host:port,host:port...`: a Cluster, by
///   some of its nodes.
/// - `redis+sentinel://[user:password@]host:port,host:port.../master[/db]`: a
///   master behind these Sentinels. User and password are the master's.
///
/// `rediss` in place of `redis` is TLS, with the feature `tls`.
#[derive(Clone)]
pub struct RedisOptions {
    setup: Setup,
    pub(crate) prefix: String,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) map: Option<Arc<AddressMap>>,
    sentinel_auth: Option<(Option<String>, String)>,
    #[cfg(feature = "tls")]
    tls: crate::tls::Files,
}

impl Setup {
    /// The same with other settings of each server.
    #[cfg(feature = "tls")]
    pub(crate) fn map(
        self,
        mut change: impl FnMut(ConnectionInfo) -> Result<ConnectionInfo>,
    ) -> Result<Self> {
        let mut all = |infos: Vec<ConnectionInfo>| infos.into_iter().map(&mut change).collect();
        Ok(match self {
            Self::Server(info) => Self::Server(change(info)?),
            Self::Cluster(nodes) => Self::Cluster(all(nodes)?),
            Self::Sentinel(sentinels, name, master) => {
                let sentinels: Result<_> = all(sentinels);
                Self::Sentinel(sentinels?, name, change(master)?)
            }
        })
    }

    pub(crate) fn is_tls(&self) -> bool {
        let info = match self {
            Self::Server(info) | Self::Sentinel(_, _, info) => Some(info),
            Self::Cluster(nodes) => nodes.first(),
        };
        info.is_some_and(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. }))
    }
}

impl RedisOptions {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`InvalidArgument`](mcp_adapter_core::ErrorKind::InvalidArgument) where it
    /// is none, or asks for TLS without the feature `tls`.
    pub fn new(url: &str) -> Result<Self> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| unusable("not a URL of Redis"))?;
        let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let setup = match kind {
            "" => Setup::Server(info(url)?),
            "cluster" => {
                let nodes = hosts(base, rest)?;
                Setup::Cluster(nodes)
            }
            "sentinel" => {
                let (authority, path) = rest
                    .split_once('/')
                    .ok_or_else(|| unusable("the URL does not name the Sentinels' master"))?;
                let (path, query) = path.split_once('?').unwrap_or((path, ""));
                let (master, db) = path.split_once('/').unwrap_or((path, "0"));
                let (user, hosts_only) = match authority.rsplit_once('@') {
                    Some((user, hosts)) => (format!("{user}@"), hosts),
                    None => (String::new(), authority),
                };
                let master_url = format!("{base}://{user}127.0.0.1/{db}?{query}");
                Setup::Sentinel(
                    hosts(base, hosts_only)?,
                    master.to_owned(),
                    info(&master_url)?,
                )
            }
            _ => return Err(unusable("an unknown kind of Redis in the URL")),
        };
        Ok(Self {
            setup,
            prefix: "mcp".into(),
            connect_timeout: None,
            map: None,
            sentinel_auth: None,
            #[cfg(feature = "tls")]
            tls: crate::tls::Files::default(),
        })
    }

    /// What all keys and channels begin with; `mcp` by default. Adapters with
    /// different prefixes have nothing in common. It must not contain braces.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.replace(['{', '}'], "_");
        self
    }

    /// How long a connection may take to open; by default a fifth less than
    /// [`operation_timeout`](mcp_adapter_core::Limits::operation_timeout).
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Where the addresses that a Cluster or a Sentinel tells cannot be reached
    /// as they are, such as behind NAT: another host and port for each.
    #[must_use]
    pub fn with_address_map(
        mut self,
        map: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static,
    ) -> Self {
        self.map = Some(Arc::new(map));
        self
    }

    /// User and password for the Sentinels themselves, which do not get those of the
    /// URL. To adapters that do not go by Sentinels it makes no difference.
    #[must_use]
    pub fn with_sentinel_auth(mut self, user: Option<&str>, password: &str) -> Self {
        self.sentinel_auth = Some((user.map(str::to_owned), password.to_owned()));
        self
    }

    /// A PEM file of the authorities that may have signed the servers' certificates, in
    /// place of the system's: of a server, of the nodes of a Cluster, of the Sentinels
    /// and their master. It is read when the adapter connects, which fails with
    /// [`InvalidArgument`](mcp_adapter_core::ErrorKind::InvalidArgument) where it
    /// cannot be used or the URL does not say `rediss`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(file.into());
        self
    }

    /// PEM files of the certificate that this client shows to servers that ask for one
    /// (`tls-auth-clients`), with what leads to its authority, and of its private key.
    /// They are read when the adapter connects, as [`with_ca_file`](Self::with_ca_file).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// The servers, with all that is said of them beside the URL.
    pub(crate) async fn setup(&self) -> Result<Setup> {
        let mut setup = self.setup.clone();
        if let (Setup::Sentinel(sentinels, ..), Some((user, password))) =
            (&mut setup, &self.sentinel_auth)
        {
            for sentinel in sentinels {
                let mut login = sentinel.redis_settings().clone().set_password(password);
                if let Some(user) = user {
                    login = login.set_username(user);
                }
                *sentinel = sentinel.clone().set_redis_settings(login);
            }
        }
        #[cfg(feature = "tls")]
        let setup = self.tls.apply(setup).await?;
        Ok(setup)
    }
}

/// Without a provider rustls panics where it cannot choose one.
#[cfg(feature = "tls")]
fn choose_provider(info: &ConnectionInfo) {
    let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if tls && rustls::crypto::CryptoProvider::get_default().is_none() {
        // Whoever is faster has chosen for the whole process, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn info(url: &str) -> Result<ConnectionInfo> {
    #[cfg(not(feature = "tls"))]
    if url.starts_with("rediss") {
        return Err(unusable(
            "`rediss` needs the feature `tls` of mcp-adapter-redis",
        ));
    }
    // The cause may repeat the URL, and with it the password.
    let info = url
        .into_connection_info()
        .map_err(|_| unusable("not a URL of Redis"))?;
    #[cfg(feature = "tls")]
    choose_provider(&info);
    Ok(info)
}

fn hosts(base: &str, rest: &str) -> Result<Vec<ConnectionInfo>> {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    hosts
        .split(',')
        .map(|host| info(&format!("{base}://{user}{host}{path}")))
        .collect()
}

/// The same settings at another address.
pub(crate) fn at(like: &ConnectionInfo, (host, port): (String, u16)) -> ConnectionInfo {
    let addr = match like.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host: host.as_str().into(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.as_str().into(), port),
    };
    like.clone().set_addr(addr)
}

/// The same settings in RESP3.
pub(crate) fn resp3(info: &ConnectionInfo) -> ConnectionInfo {
    let redis = info.redis_settings().clone();
    info.clone()
        .set_redis_settings(redis.set_protocol(ProtocolVersion::RESP3))
}

impl TryFrom<&str> for RedisOptions {
    type Error = mcp_adapter_core::Error;

    fn try_from(url: &str) -> Result<Self> {
        Self::new(url)
    }
}

impl TryFrom<String> for RedisOptions {
    type Error = mcp_adapter_core::Error;

    fn try_from(url: String) -> Result<Self> {
        Self::new(&url)
    }
}

impl fmt::Debug for RedisOptions {
    /// Without addresses: they may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setup = match &self.setup {
            Setup::Server(_) => "server",
            Setup::Cluster(_) => "cluster",
            Setup::Sentinel(..) => "sentinel",
        };
        f.debug_struct("RedisOptions")
            .field("setup", &setup)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use mcp_adapter_core::ErrorKind;

    use super::*;

    #[test]
    fn urls_of_all_kinds() {
        let server = RedisOptions::new("redis://:s%40t@h:7000/2?protocol=resp3").unwrap();
        let Setup::Server(info) = &server.setup else {
            panic!("{server:?}");
        };
        assert_eq!(info.redis_settings().protocol(), ProtocolVersion::RESP3);
        assert!(!format!("{server:?}").contains("s@t"));
        let cluster = RedisOptions::new("redis+cluster://u:p@a:1,b:2?protocol=resp3").unwrap();
        let Setup::Cluster(nodes) = &cluster.setup else {
            panic!("{cluster:?}");
        };
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[1].redis_settings().username(), Some("u"));
        let sentinel = RedisOptions::new("redis+sentinel://:p@a:1,b:2/main/3").unwrap();
        let Setup::Sentinel(nodes, name, master) = &sentinel.setup else {
            panic!("{sentinel:?}");
        };
        assert_eq!((nodes.len(), name.as_str()), (2, "main"));
        assert_eq!(nodes[0].redis_settings().password(), None);
        assert_eq!(master.redis_settings().password(), Some("p"));
        for bad in ["", "h:1", "http://h", "redis+x://h", "redis+sentinel://h"] {
            let error = RedisOptions::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_its_feature_is_a_typed_error() {
        let error = RedisOptions::new("rediss://h").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("tls"));
    }
}
