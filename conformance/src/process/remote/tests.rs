//! Both sides in one process.
#![allow(clippy::unwrap_used, reason = "tests")]

use futures::{FutureExt, StreamExt};
use mcp_adapter_core::{Capabilities, SessionId};
use mcp_adapter_memory::MemoryStorage;
use tokio::net::UnixStream;

use super::*;
use crate::{Suite, process::serve_on};

const PATIENCE: Duration = Duration::from_secs(30);

async fn remote(storage: MemoryStorage) -> io::Result<Remote> {
    let (near, far) = UnixStream::pair()?;
    let far = far.into_std()?;
    far.set_nonblocking(false)?;
    let (input, output) = (far.try_clone()?, far);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _ = runtime.block_on(serve_on(storage, input, output));
    });
    let (replies, requests) = near.into_split();
    Remote::over("memory", replies, requests, None, PATIENCE).await
}

#[test]
fn every_step_crosses_as_it_is() {
    let suite = Suite::new("crossing", Capabilities::in_process());
    let report = suite.check_storage(
        |_| true,
        |options| async move { Ok(remote(options.store(MemoryStorage::new)).await?) },
    );
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert!(report.passed.len() > 40, "{report:?}");
}

#[tokio::test]
async fn errors_keep_their_kind_and_whether_they_took_effect() {
    for applied in [Applied::No, Applied::Unknown] {
        let error = Error::new(ErrorKind::UnsupportedFormat, "enter")
            .with_applied(applied)
            .with_source("of version 7");
        let frame = frame::frame(&Reply::Answer {
            id: 3,
            outcome: Err(error.into()),
        });
        let Some(Reply::Answer {
            outcome: Err(failure),
            ..
        }) = read(&mut frame.unwrap().as_slice()).await.unwrap()
        else {
            panic!("not an answer");
        };
        let error = failure.into_error("enter");
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
        assert_eq!(error.applied(), applied);
        assert!(format!("{error:?}").contains("of version 7"), "{error:?}");
    }
}

#[tokio::test]
async fn a_doorbell_that_is_full_says_so_and_one_that_is_dropped_is_hung_up() {
    let (frames, mut written) = mpsc::channel(1);
    let link = Arc::new(Link {
        waiting: Arc::default(),
        frames,
        last: AtomicU64::new(1),
    });
    let (knocks, queue) = mpsc::channel(1);
    let dropped = Arc::<AtomicBool>::default();
    let bell = Bell {
        knocks,
        dropped: Arc::clone(&dropped),
    };
    assert!(link.waiting.add(0, oneshot::channel().0, Some(bell)));
    let mut listening = Listening {
        link: Arc::clone(&link),
        id: 0,
        knocks: queue,
        dropped,
    };
    for number in [1, 2] {
        let knock = Some(Ok(Knock::Probe(number)));
        link.waiting.tell(Reply::Knock { id: 0, knock }).unwrap();
    }
    let mut heard = [listening.next().await, listening.next().await]
        .map(|knock| format!("{:?}", knock.unwrap().unwrap()));
    heard.sort();
    assert_eq!(heard, ["Everything", "Probe(1)"]);
    assert!(listening.next().now_or_never().is_none());
    drop(listening);
    let frame = written.recv().await.unwrap();
    let request: Request = decode(&frame[LENGTH..]).unwrap();
    assert!(matches!(request, Request::HangUp { id: 0 }), "{request:?}");
}

#[tokio::test]
async fn knocks_cross_until_nobody_listens() {
    let storage = MemoryStorage::new();
    let (remote, me) = (
        remote(storage.clone()).await.unwrap(),
        InstanceId::generate(),
    );
    let mut knocks = remote.doorbell(me).await.unwrap();
    let session = SessionId::generate().key();
    let sent = Knock::Signal {
        from: me,
        channel: mcp_adapter_core::storage::SignalChannel::Session(session),
        payload: Bytes::from((0..=255).collect::<Vec<u8>>()),
    };
    storage
        .knock(&[(Door::Of(me), sent.clone())])
        .await
        .unwrap();
    assert_eq!(knocks.next().await.unwrap().unwrap(), sent);
    // The doorbell goes on although the handle is gone.
    drop(remote);
    storage
        .knock(&[(Door::All, Knock::Probe(9))])
        .await
        .unwrap();
    assert_eq!(knocks.next().await.unwrap().unwrap(), Knock::Probe(9));
}
