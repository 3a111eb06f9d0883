//! A TCP proxy that does to connections what its [`Link`] says.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
};

use super::{
    Link,
    link::{Mode, Switches},
};

/// A proxy on a port of its own, in front of one server. It runs on a thread of
/// its own, so that it outlives the runtime of an instance that is killed, and
/// stops when it is dropped.
pub struct Proxy {
    addr: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `server`.
    ///
    /// # Errors
    /// Where no port or thread is to be had.
    pub fn start(server: SocketAddr, link: &Link) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let switches = link.switches();
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = accept(listener, server, switches) => {}
                    }
                });
            })?;
        Ok(Self { addr, _stop: stop })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("addr", &self.addr).finish()
    }
}

async fn accept(listener: std::net::TcpListener, server: SocketAddr, switches: Switches) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((client, _)) = listener.accept().await {
        let mut switches = switches.clone();
        tokio::spawn(async move {
            let mut cut = switches.clone();
            tokio::select! {
                () = cut.cut_off() => {}
                _ = serve(client, server, &mut switches) => {}
            }
        });
    }
}

async fn serve(client: TcpStream, server: SocketAddr, switches: &mut Switches) -> io::Result<()> {
    if switches.thawed().await == Mode::Cut {
        return Ok(());
    }
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let doomed = AtomicBool::new(false);
    let requests = pump(from_client, to_server, switches.clone(), |switches| {
        if switches.loses_reply() {
            doomed.store(true, Ordering::SeqCst);
        }
        true
    });
    // The server has the request when its first reply is here.
    let replies = pump(from_server, to_client, switches.clone(), |_| {
        !doomed.load(Ordering::SeqCst)
    });
    tokio::try_join!(requests, replies)?;
    Ok(())
}

/// Forwards until the sender closes or `forward` refuses; an error closes both
/// directions.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut switches: Switches,
    forward: impl Fn(&Switches) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Nothing is read off a frozen link: the sender's buffers fill up.
        switches.thawed().await;
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let delay = switches.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // It may have been frozen while we read.
        switches.thawed().await;
        if !forward(&switches) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
