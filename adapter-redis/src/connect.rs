//! Opening connections: where they lead, and who is at the other end.

use std::{sync::Arc, time::Duration};

use mcp_adapter_core::{Applied, Error, Result};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, RedisError, Value, aio::MultiplexedConnection,
};

use crate::{
    error,
    explain::SENTINEL,
    options::at,
    script,
    server::{Conn, Identity, Settings},
};

/// Where a connection leads.
#[derive(Clone)]
pub(crate) enum Target {
    Server(ConnectionInfo),
    /// Whatever these Sentinels call the master of this name.
    Master {
        sentinels: Arc<Vec<ConnectionInfo>>,
        name: Arc<str>,
        like: ConnectionInfo,
    },
}

impl Target {
    pub(crate) async fn resolve(&self, settings: &Settings) -> Result<ConnectionInfo> {
        match self {
            Self::Server(info) => Ok(info.clone()),
            Self::Master {
                sentinels,
                name,
                like,
            } => {
                let mut last = None;
                let mut answered = false;
                for sentinel in sentinels.iter() {
                    match ask_sentinel(sentinel, name, settings).await {
                        Ok(Some((host, port))) => return Ok(at(like, settings.map(&host, port))),
                        Ok(None) => answered = true,
                        Err(error) => last = Some(error),
                    }
                }
                let error = Error::unavailable(SENTINEL, Applied::No);
                if answered {
                    return Err(error.with_message(format!(
                        "the Sentinels know no master that is called `{name}`"
                    )));
                }
                let error = error.with_message("no Sentinel tells of a master");
                Err(match last {
                    Some(last) => error.with_source(last),
                    None => error,
                })
            }
        }
    }
}

async fn ask_sentinel(
    sentinel: &ConnectionInfo,
    name: &str,
    settings: &Settings,
) -> Result<Option<(String, u16)>, RedisError> {
    // The next one is asked within the time of one operation.
    let config = settings
        .config()
        .set_connection_timeout(Some(settings.connect / 3))
        .set_response_timeout(Some(settings.connect / 3));
    let mut conn = dial(sentinel.clone(), &config, settings.connect / 3).await?;
    let mut ask = redis::cmd("SENTINEL");
    ask.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    ask.query_async(&mut conn).await
}

/// Opens a connection that may take so long.
#[cfg_attr(
    not(feature = "tls"),
    expect(unused_variables, reason = "only for TLS")
)]
async fn dial(
    info: ConnectionInfo,
    config: &AsyncConnectionConfig,
    patience: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let client = Client::open(info)?;
    let opening = client.get_multiplexed_async_connection_with_config(config);
    #[cfg(feature = "tls")]
    {
        let plain = async {
            tokio::time::sleep(patience / 4).await;
            crate::tls::speaks_plainly(client.get_connection_info()).await;
        };
        tokio::select! {
            opened = opening => opened,
            () = plain => Err(RedisError::from((
                redis::ErrorKind::InvalidClientConfig,
                "the server speaks no TLS at this port: `redis` in place of `rediss`, or its \
                 TLS port",
            ))),
        }
    }
    #[cfg(not(feature = "tls"))]
    opening.await
}

/// Opens a connection and finds out whom it leads to.
pub(crate) async fn connect(target: &Target, settings: &Settings) -> Result<Conn> {
    let all = async {
        let info = target.resolve(settings).await?;
        let refused = |error: RedisError| {
            let certain = error::link("connect", error);
            // Nothing but the greeting was sent.
            certain.with_applied(Applied::No)
        };
        let mux = dial(info, &settings.config(), settings.connect)
            .await
            .map_err(refused)?;
        greet(mux).await
    };
    tokio::time::timeout(settings.connect, all)
        .await
        .unwrap_or_else(|_| {
            Err(Error::new(mcp_adapter_core::ErrorKind::Timeout, "connect")
                .with_applied(Applied::No))
        })
}

/// Finds out who is at the other end, and loads the scripts that it lacks.
pub(crate) async fn greet(mut mux: MultiplexedConnection) -> Result<Conn> {
    let mut hello = redis::pipe();
    hello.cmd("INFO").arg("server");
    hello.cmd("INFO").arg("replication");
    hello.cmd("INFO").arg("cluster");
    hello.cmd("INFO").arg("memory");
    let exists = hello.cmd("SCRIPT").arg("EXISTS");
    for script in script::all() {
        exists.arg(&script.hash);
    }
    let failed = |error: RedisError| error::link("connect", error).with_applied(Applied::No);
    let answers = mux
        .send_packed_commands(&hello, 0, hello.len())
        .await
        .map_err(failed)?;
    let mut text = String::new();
    for answer in &answers[..answers.len().min(4)] {
        if let Value::ServerError(refused) = answer {
            return Err(error::server("connect", refused));
        }
        let part: String =
            redis::from_redis_value_ref(answer).map_err(|_| error::odd("connect"))?;
        text.push_str(&part);
        text.push('\n');
    }
    let identity = Identity::read(&text).ok_or_else(|| error::odd("connect"))?;
    if !identity.master {
        return Err(
            Error::unavailable("connect", Applied::No).with_message("the server is a replica")
        );
    }
    let known: Vec<bool> = match answers.get(4) {
        Some(Value::ServerError(refused)) => return Err(error::server("connect", refused)),
        Some(known) => redis::from_redis_value_ref(known).unwrap_or_default(),
        None => Vec::new(),
    };
    let mut load = redis::pipe();
    for (index, script) in script::all().iter().enumerate() {
        if known.get(index) != Some(&true) {
            load.cmd("SCRIPT").arg("LOAD").arg(&script.text);
        }
    }
    if !load.is_empty() {
        let loaded = mux
            .send_packed_commands(&load, 0, load.len())
            .await
            .map_err(failed)?;
        for answer in loaded {
            if let Value::ServerError(refused) = answer {
                return Err(error::server("connect", &refused));
            }
        }
    }
    Ok(Conn::new(mux, identity))
}
