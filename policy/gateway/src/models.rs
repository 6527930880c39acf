//! The models' thread: takes connections of the guest to `model.bulkhead` over from the event loop,
//! each as one end of a socketpair, and serves them with the router. What it needs of the host's
//! files is read before the jail; the thread is started inside of it, before seccomp takes the
//! possibility away. Used by the process and by the sockets.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_conditions::Asker;
use bulkhead_inherited::Inherited;
use bulkhead_models::{Models as Description, Spent};
use bulkhead_network::{MAX_MODELS_BYTES, NetworkDescription, spent};
use bulkhead_proxy::{Consent, provider};
use bulkhead_record::Recorder;
use bulkhead_router::{Ask, Asking, HostClock, HostConnector, Outside, Router};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeroize::Zeroizing;

use crate::chatter::Chatter;
use crate::error::Error;
use crate::process::passed;

/// Most connections that are served at a time; further ones are closed.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// How long a guest may be silent inside of a head, and between two requests.
const HEAD: Duration = Duration::from_secs(120);
/// Most bytes of a head.
const MAX_BUFFER: usize = 64 * 1024;

/// The way to the router's thread.
pub(crate) struct Models(UnboundedSender<OwnedFd>);

impl Models {
    /// Gives a connection away. As many wait there as connections fit into the table.
    pub(crate) fn hand_over(&self, stream: OwnedFd) -> io::Result<()> {
        // Never: the thread ends with the process.
        let gone = |_| io::Error::from(io::ErrorKind::NotConnected);
        self.0.send(stream).map_err(gone)
    }
}

/// Why there are no models.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// The file cannot be read.
    #[error("cannot read the models: {0}")]
    Read(io::Error),
    /// It is too long, or is none. What is wrong with it is not said: it has keys.
    #[error("the models are too long or malformed")]
    Malformed,
    /// TLS cannot be spoken.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The host gives no thread.
    #[error("cannot start the router of models: {0}")]
    Start(io::Error),
}

/// A router before its thread exists.
pub(crate) struct Ready {
    models: Description,
    tls: ClientConfig,
    spent: File,
}

/// Reads what the router needs; `None` where there are no models.
pub(crate) fn prepare(
    description: &NetworkDescription,
    own: &mut Inherited,
) -> Result<Option<Ready>, Error> {
    let Some(access) = &description.models else {
        return Ok(None);
    };
    let file = File::from(own.take("the models", access.file)?);
    let length = file.metadata().map_err(ModelsError::Read)?.len();
    // Its whole size at once: growing would leave copies of the keys behind.
    let capacity = usize::try_from(length.min(MAX_MODELS_BYTES) + 1).unwrap_or(0);
    let mut json = Zeroizing::new(Vec::with_capacity(capacity));
    let read = file.take(MAX_MODELS_BYTES + 1).read_to_end(&mut json);
    let read = read.map_err(ModelsError::Read)?;
    let models = match read as u64 > MAX_MODELS_BYTES {
        true => Err(ModelsError::Malformed),
        false => serde_json::from_slice(&json).map_err(|_| ModelsError::Malformed),
    };
    let mut roots = RootCertStore::empty();
    // Hosts have some that are too old to be read; without any, no provider by TLS is trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(ModelsError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let spent = File::from(own.take("what was spent on models", access.spent)?);
    Ok(Some(Ready {
        spent,
        models: models?,
        tls,
    }))
}

impl Ready {
    /// Starts the thread, which asks people by `consent` and says what it refuses by `chatter`.
    pub(crate) fn start(
        self,
        recorder: Arc<dyn Recorder>,
        conditions: Option<Arc<Asker>>,
        consent: Consent,
        chatter: Chatter,
    ) -> Result<Models, ModelsError> {
        let start = Instant::now();
        let chatter = Mutex::new(chatter);
        let log = move |line: &str| {
            let mut chatter = chatter.lock().unwrap_or_else(PoisonError::into_inner);
            chatter.say(passed(start), format_args!("{line}"));
        };
        let file = self.spent;
        let outside = Outside {
            connector: Arc::new(HostConnector),
            tls: Arc::new(self.tls),
            recorder,
            conditions,
            consent: Arc::new(Person(consent)),
            clock: Arc::new(HostClock::new()),
            carry: Some(Arc::new(move |now: Spent| {
                // A file in memory that is there already takes it, or the host has no memory at all.
                let bytes = spent(now.tokens, now.money.micro_cents());
                let _ = file.write_all_at(&bytes, 0);
            })),
            log: Arc::new(log),
        };
        let router = Router::new(self.models, outside).map_err(ModelsError::Start)?;
        let (hand_over, queue) = unbounded_channel();
        let (began, begun) = sync_channel(1);
        let body = move || {
            let runtime = Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    // From here on the thread needs nothing that seccomp refuses.
                    let _ = began.send(Ok(()));
                    match serve(router, queue).await {}
                }),
                Err(error) => drop(began.send(Err(ModelsError::Start(error)))),
            }
        };
        let thread = thread::Builder::new().name("models".to_owned());
        thread.spawn(body).map_err(ModelsError::Start)?;
        let gone = |_| ModelsError::Start(io::ErrorKind::BrokenPipe.into());
        begun.recv().map_err(gone)??;
        Ok(Models(hand_over))
    }
}

/// Whom the router asks for consent.
struct Person(Consent);

impl Ask for Person {
    fn ask<'a>(&'a self, models: &'a str, why: &'a str) -> Asking<'a> {
        Box::pin(self.0.ask("model.chat", models, why))
    }
}

async fn serve(router: Router, mut queue: UnboundedReceiver<OwnedFd>) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(stream) = queue.recv().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let Ok(stream) = tokio::net::UnixStream::from_std(UnixStream::from(stream)) else {
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let router = router.clone();
                async move { Ok::<_, Infallible>(router.handle(request).await) }
            });
            // How it ends concerns nobody but the guest, which sees it.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
    // The process is about to end. A thread that ended first would make system calls for which it
    // has no other use, and which seccomp refuses.
    std::future::pending().await
}
