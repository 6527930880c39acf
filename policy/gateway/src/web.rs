//! The proxy's thread: takes connections of the guest over from the event loop, each as one end of
//! a socketpair. What it needs of the host's files is read before the jail; the thread is started
//! inside of it, before seccomp takes the possibility away. Used by the process and by the sockets.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Instant;

use bulkhead_inherited::Inherited;
use bulkhead_network::tools::Wanted;
use bulkhead_network::{
    MAX_CERTIFICATES_BYTES, MAX_SECRET_BYTES, NetworkDescription, Secret as Described,
};
use bulkhead_proxy::quota::Quotas;
use bulkhead_proxy::secrets::{Secret, Secrets};
use bulkhead_proxy::{
    Authority, AuthorityError, CertificateDer, Consent, End, Flow, Policy, Proxy, ProxyError,
    Records, certificates, provider,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use zeroize::Zeroizing;

use crate::chatter::Chatter;
use crate::error::Error;
use crate::process::passed;

/// A connection for the proxy.
struct Handover {
    flow: Flow,
    stream: OwnedFd,
    broken: Arc<AtomicBool>,
    /// It is for the partition's tools.
    wanted: Option<Wanted>,
}

/// The way to the proxy's thread.
pub(crate) struct Web(UnboundedSender<Handover>);

impl Web {
    /// Gives a connection away, of the guest or one that its tools wanted; the flag is set before it ends otherwise than well. As many wait
    /// there as connections fit into the table.
    pub(crate) fn hand_over(
        &self,
        flow: Flow,
        stream: OwnedFd,
        wanted: Option<Wanted>,
    ) -> io::Result<Arc<AtomicBool>> {
        let broken = Arc::new(AtomicBool::new(false));
        let handover = Handover {
            flow,
            stream,
            broken: broken.clone(),
            wanted,
        };
        // Never: the thread ends with the process.
        let gone = |_| io::Error::from(io::ErrorKind::NotConnected);
        self.0.send(handover).map_err(gone)?;
        Ok(broken)
    }
}

/// What a partition may move in all.
#[derive(Clone)]
struct Budget {
    quotas: Quotas,
    place: usize,
}

impl Budget {
    /// Counts bytes that were moved.
    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.quotas.bytes(&[self.place], bytes as u64);
        left.map_err(io::Error::other)
    }
}

/// A connection that stays open until everybody who holds it is done with it.
#[derive(Clone)]
struct Lent {
    stream: Arc<Mutex<tokio::net::UnixStream>>,
    /// What its bytes count against: those of the guest are counted where they cross the network.
    budget: Option<Budget>,
}

impl Lent {
    fn stream(&self) -> MutexGuard<'_, tokio::net::UnixStream> {
        // One thread alone locks it, and a panic ends the process.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        self.budget.as_ref().map_or(Ok(()), |own| own.spend(bytes))
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.stream()).poll_read(context, buffer))?;
        Poll::Ready(self.spend(buffer.filled().len() - before))
    }
}

impl AsyncWrite for Lent {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut *self.stream()).poll_write(context, bytes))?;
        Poll::Ready(self.spend(count).map(|()| count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_shutdown(context)
    }
}

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// A file cannot be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What it holds.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file is too long, or no text.
    #[error("{0} is too long or malformed")]
    Malformed(&'static str),
    /// The authority signs nothing.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS cannot be spoken.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The host gives no thread.
    #[error("cannot start the proxy: {0}")]
    Start(io::Error),
}

/// A proxy before its thread exists.
pub(crate) struct Ready {
    policy: Policy,
    authority: Authority,
    trust: Vec<CertificateDer<'static>>,
    budget: Option<Budget>,
}

/// Reads what the proxy needs; `None` where no rule asks for one.
pub(crate) fn prepare(
    description: &NetworkDescription,
    own: &mut Inherited,
    quotas: &Quotas,
) -> Result<Option<Ready>, Error> {
    let Some(web) = &description.web else {
        return Ok(None);
    };
    let mut pem = Zeroizing::new(String::new());
    let file = File::from(own.take("the partition's authority", web.authority)?);
    read_text("the partition's authority", file, &mut pem)?;
    let authority = Authority::new(&description.name, &pem, provider()).map_err(WebError::from)?;
    // A host without any is one whose servers nobody can check; only those named are trusted.
    let mut trust = rustls_native_certs::load_native_certs().certs;
    for fd in &web.trust {
        let what = "certificates to trust";
        let mut pem = String::new();
        read_text(what, File::from(own.take(what, *fd)?), &mut pem)?;
        trust.extend(certificates(&pem).ok_or(WebError::Malformed(what))?);
    }
    let secrets = description.secrets.iter();
    let secrets: Result<_, Error> = secrets.map(|secret| read_secret(secret, own)).collect();
    let (allow, deny) = (description.allow.clone(), description.deny.clone());
    let policy = Policy::new(allow, deny, quotas.clone(), Secrets::new(secrets?));
    Ok(Some(Ready {
        policy,
        authority,
        trust,
        budget: description.budget.map(|place| Budget {
            quotas: quotas.clone(),
            place,
        }),
    }))
}

fn read_text(what: &'static str, file: File, text: &mut String) -> Result<(), WebError> {
    let read = file.take(MAX_CERTIFICATES_BYTES + 1).read_to_string(text);
    let read = read.map_err(|source| WebError::Read { what, source })?;
    match read as u64 > MAX_CERTIFICATES_BYTES {
        true => Err(WebError::Malformed(what)),
        false => Ok(()),
    }
}

fn read_secret(described: &Described, own: &mut Inherited) -> Result<Secret, Error> {
    const WHAT: &str = "a secret";
    let file = File::from(own.take(WHAT, described.value)?);
    // Its whole size at once: growing would leave copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
    let read = file
        .take(MAX_SECRET_BYTES as u64 + 1)
        .read_to_end(&mut value);
    read.map_err(|source| WebError::Read { what: WHAT, source })?;
    let header = described.header.parse();
    match header {
        Ok(header) if (1..=MAX_SECRET_BYTES).contains(&value.len()) => Ok(Secret {
            name: described.name.clone(),
            placeholder: described.placeholder.clone(),
            value,
            host: described.host.clone(),
            port: described.port,
            header,
            paths: described.paths.clone(),
        }),
        _ => Err(WebError::Malformed(WHAT).into()),
    }
}

impl Ready {
    /// Starts the thread, which asks people by `consent` and says what it refuses by `chatter`.
    pub(crate) fn start(
        self,
        records: Records,
        consent: Consent,
        mut chatter: Chatter,
    ) -> Result<Web, WebError> {
        let (hand_over, queue) = unbounded_channel();
        let (began, begun) = sync_channel(1);
        let body = move || {
            let runtime = Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = began.send(Err(WebError::Start(error)));
                    return;
                }
            };
            let start = Instant::now();
            let tell = Box::new(move |sentence: &str| {
                chatter.say(passed(start), format_args!("{sentence}"));
            });
            let (policy, authority, trust) = (self.policy, self.authority, self.trust);
            let proxy = Proxy::new(policy, authority, trust, records, consent, tell);
            match proxy {
                Ok(proxy) => LocalSet::new().block_on(&runtime, async {
                    // From here on the thread needs nothing that seccomp refuses.
                    let _ = began.send(Ok(()));
                    match serve(proxy, self.budget, queue).await {}
                }),
                Err(error) => drop(began.send(Err(error.into()))),
            }
        };
        let thread = thread::Builder::new().name("proxy".to_owned());
        thread.spawn(body).map_err(WebError::Start)?;
        let gone = |_| WebError::Start(io::ErrorKind::BrokenPipe.into());
        begun.recv().map_err(gone)??;
        Ok(Web(hand_over))
    }
}

async fn serve(
    proxy: Proxy,
    budget: Option<Budget>,
    mut queue: UnboundedReceiver<Handover>,
) -> Infallible {
    while let Some(handover) = queue.recv().await {
        let (proxy, budget) = (proxy.clone(), budget.clone());
        tokio::task::spawn_local(async move {
            let Handover {
                flow,
                stream,
                broken,
                wanted,
            } = handover;
            let Ok(stream) = tokio::net::UnixStream::from_std(UnixStream::from(stream)) else {
                broken.store(true, Ordering::Release);
                return;
            };
            let own = Lent {
                stream: Arc::new(Mutex::new(stream)),
                budget: budget.filter(|_| wanted.is_some()),
            };
            let end = match wanted {
                None => proxy.serve(flow, own.clone()).await,
                Some(Wanted { host, tls, .. }) => {
                    proxy.serve_tools(flow, host, tls, own.clone()).await
                }
            };
            if end == End::Reset {
                broken.store(true, Ordering::Release);
            }
            // Only now may it be closed, which the event loop sees.
            drop(own);
        });
    }
    // The process is about to end. A thread that ended first would make system calls for which it
    // has no other use, and which seccomp refuses.
    std::future::pending().await
}
