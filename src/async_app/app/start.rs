//! Starting an app: checks its settings and starts its threads.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use super::{AsyncWebsocketApp, HumphreyLink};
#[cfg(feature = "cluster")]
use crate::async_app::cluster::LocalMembers;
use crate::async_app::presence::{PresenceHandle, PresenceThreads, PresentConnection};
use crate::async_app::procedures::Serving;
use crate::async_app::program::AppProgram;
use crate::async_app::publish::AppShared;
use crate::async_app::running::RunningApp;
#[cfg(feature = "cluster")]
use crate::cluster::PreparedCluster;
use crate::engine::{Prepared, Settings};
use crate::host::{self, Routes};
use crate::listener::{Listener, ListenerSocket, bind_tcp};
use crate::presence::Announced;
use crate::proxies::{Networks, Proxies, TrustedProxies};
use crate::report;

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Binds the address now, and returns it with the actual port. Clients that connect before the app runs are served
    /// when it does. With [listeners](Self::with_listener) it also binds the app's own address.
    ///
    /// # Errors
    ///
    /// If the address can't be bound (the error names it), or if the app takes its connections from a Humphrey app.
    pub fn bind(&mut self) -> io::Result<SocketAddr> {
        let HumphreyLink::Internal(_, address) = &mut self.humphrey_link else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an unlinked app has no address: the Humphrey app that it is linked to listens for it",
            ));
        };
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => bind_tcp(*address)?,
        };
        let bound = listener.local_addr()?;
        *address = bound;
        self.listener = Some(listener);
        Ok(bound)
    }

    /// Runs the app until it is stopped.
    ///
    /// # Panics
    ///
    /// If the app can't start, for example because its address is in use; [`try_run`](Self::try_run) returns an error
    /// instead.
    #[track_caller]
    pub fn run(self) {
        if let Err(error) = self.try_run() {
            panic!("{error}");
        }
    }

    /// Runs the app until it is stopped, or returns why it can't start.
    ///
    /// # Errors
    ///
    /// If the app can't start, for example because its address is in use. The error names the address.
    pub fn try_run(self) -> io::Result<()> {
        self.start()?.join();
        Ok(())
    }

    /// Starts the app in the background.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    /// use std::time::Duration;
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_address("127.0.0.1:0");
    /// let running = app.start()?;
    /// println!("listening on {:?}", running.local_addr());
    /// running.shutdown(Duration::from_secs(1));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the app can't start, for example because its address is in use. The error names the address.
    pub fn start(mut self) -> io::Result<RunningApp> {
        if !self.warnings_on_stderr {
            report::silence_stderr();
        }
        let proxies = self.check_addresses()?;
        let proxy_protocol = self.proxy_protocol()?;
        self.check_event_streams()?;
        self.check_keyed_rooms()?;
        if !self.event_streams.is_empty() {
            self.keyed.count_events();
        }
        let routes = self.take_routes()?;
        #[cfg(feature = "cluster")]
        let cluster = self.prepare_cluster()?;
        let is_linked = matches!(self.humphrey_link, HumphreyLink::External(_));
        let (address, sockets) = match is_linked {
            true => (None, Vec::new()),
            false => self.bind_all()?,
        };
        host::fit_connections(&mut self.limits);
        host::enlarge_table(self.limits.connections_max);
        let calls_max = self.limits.connection_calls_max;
        let serving = Serving::of(self.procedures, self.on_join, self.on_refresh, calls_max);
        if serving.as_ref().is_some_and(Serving::refreshes) {
            self.shared.refreshes.store(true, Relaxed);
        }
        let settings = Settings {
            limits: self.limits,
            slow_consumer: self.slow_consumer,
            heartbeat: self.heartbeat,
            shards: self
                .shards
                .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)),
            handler_threads: self.handler_threads,
            adaptive_handlers: self.adaptive_handlers && self.handler_threads > 1,
            origins: self.origins,
            hosts: self.hosts,
            guarded: self.guarded,
            option_names: self.option_names,
            proxies,
            proxy_protocol,
            #[cfg(feature = "deflate")]
            compression: self.compression.clone(),
            #[cfg(feature = "__tls")]
            tls: self.tls.clone(),
        };
        let close_timeout = settings.limits.close_timeout;
        let program = AppProgram {
            state: self.state,
            shared: self.shared.clone(),
            on_handshake: self.on_handshake,
            on_body: self.on_body,
            event_streams: self.event_streams,
            on_connect: self.on_connect,
            on_message: self.on_message,
            on_disconnect: self.on_disconnect,
            on_room: self.on_room,
            serving,
            routes,
        };
        let program = Arc::new(program);
        let engine = Prepared::new(settings, sockets, program.clone())?;
        // Before anything runs: the first handler may send.
        #[cfg(feature = "cluster")]
        if let Some(cluster) = &cluster {
            let _ = self.shared.cluster.set(cluster.handle.clone());
        }
        let announces = program.on_room.is_some();
        let presence = (!self.presence.is_empty()).then(|| {
            let node = self.shared.as_node();
            Arc::new(PresenceHandle::new(self.presence, announces, node))
        });
        let hub = engine.hub.clone();
        let kept = (self.histories, self.keyed);
        self.shared
            .started(hub, kept, self.renderers, presence.clone());
        let engine = engine.start()?;
        let mut threads = None;
        let helpers = || {
            if let Some(presence) = presence {
                let announce =
                    move |announced: Announced<PresentConnection>| program.announce(announced);
                let announce = announces.then_some(announce);
                threads = Some(PresenceThreads::start(&self.shared, presence, announce)?);
            }
            #[cfg(feature = "cluster")]
            if let Some(cluster) = cluster {
                cluster.start(LocalMembers::new(&self.shared))?;
            }
            if is_linked {
                host::adopt_from(self.handed_over, engine.hub.clone())?;
            }
            match self.shutdown {
                Some(shutdown) => stop_when_told(shutdown, self.shared.clone(), close_timeout),
                None => Ok(()),
            }
        };
        if let Err(error) = helpers() {
            self.shared.shutdown(Duration::ZERO);
            return Err(error);
        }
        Ok(RunningApp {
            engine,
            shared: self.shared,
            presence: threads,
            address,
        })
    }

    /// Binds the app's own address, unless other listeners take its place. Returns the first TCP address, and all sockets.
    fn bind_all(&mut self) -> io::Result<(Option<SocketAddr>, Vec<ListenerSocket>)> {
        if self.listeners.is_empty() || self.has_address {
            self.bind()?;
        }
        let own = self.listener.take().map(Listener::from);
        let listeners: Vec<_> = own.into_iter().chain(self.listeners.drain(..)).collect();
        let address = listeners.iter().find_map(Listener::local_addr);
        let sockets = listeners.into_iter().map(|listener| listener.0);
        Ok((address, sockets.collect()))
    }

    /// Parses the networks of the proxies that speak the PROXY protocol.
    fn proxy_protocol(&self) -> io::Result<Option<Networks>> {
        let networks = self.proxy_protocol.as_deref().map(Networks::parse);
        networks.transpose().map_err(|error| {
            let why = format!("with_proxy_protocol: {error}");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })
    }

    /// Checks origins, hosts and proxies. Returns the proxies' networks.
    fn check_addresses(&self) -> io::Result<Option<Proxies>> {
        let invalid =
            |error: &dyn Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        if let Some(origins) = &self.origins {
            origins.check().map_err(|error| invalid(&error))?;
        }
        if let Some(hosts) = &self.hosts {
            hosts.check().map_err(|error| invalid(&error))?;
        }
        let proxies = self.proxies.as_ref().map(TrustedProxies::resolve);
        proxies.transpose().map_err(|error| invalid(&error))
    }

    #[cfg(feature = "cluster")]
    fn prepare_cluster(&self) -> io::Result<Option<PreparedCluster>> {
        let Some(cluster) = &self.cluster else {
            return Ok(None);
        };
        if !self.histories.is_empty() && !cluster.keeps_histories() {
            let why = "the broker of the cluster is NATS, which keeps no messages, but with_history asks for histories: use Redis \
                       or Valkey for them, or remove with_history";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        PreparedCluster::new(cluster).map(Some)
    }

    fn check_keyed_rooms(&self) -> io::Result<()> {
        let invalid = |error| Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        #[cfg(feature = "cluster")]
        if self.cluster.is_some() && !self.keyed.is_empty() {
            return invalid(
                "the nodes of a cluster do not share the messages of keyed rooms: remove with_keyed_rooms or with_cluster"
                    .to_owned(),
            );
        }
        let bytes_max = self.limits.keyed_bytes_max;
        if let Some(pattern) = self.keyed.exceeding(bytes_max) {
            return invalid(format!(
                "the keyed rooms {pattern:?} may keep more than the {bytes_max} bytes that may wait for a client: raise \
                 Limits::keyed_bytes_max, or lower KeyedLimits::bytes"
            ));
        }
        let bytes_max = self.limits.mailbox_bytes_max;
        if let Some(pattern) = self.keyed.exceeding_mailbox(bytes_max) {
            return invalid(format!(
                "the keyed rooms {pattern:?} may have more keys than fit into the {bytes_max} bytes of a mailbox, through which a client \
                 joins: raise Limits::mailbox_bytes_max, or lower KeyedLimits::keys_max or KeyedLimits::bytes"
            ));
        }
        Ok(())
    }

    fn check_event_streams(&self) -> io::Result<()> {
        let invalid = |error| Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        if let Some((path, _)) = self
            .event_streams
            .iter()
            .find(|(path, _)| !path.starts_with(['/', '*']))
        {
            return invalid(format!(
                "the path of an event stream begins with '/': {path:?} fits no request"
            ));
        }
        if matches!(self.humphrey_link, HumphreyLink::External(_)) && !self.event_streams.is_empty()
        {
            return invalid(
                "an unlinked app has no port of its own, where with_event_stream could be served"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn take_routes(&mut self) -> io::Result<Option<Routes<State>>> {
        let sub_apps = std::mem::take(&mut self.routes);
        if sub_apps.is_empty() {
            return Ok(None);
        }
        if let HumphreyLink::External(_) = self.humphrey_link {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an unlinked app has no port of its own: add the routes to the Humphrey app instead of with_routes",
            ));
        }
        Routes::new(
            sub_apps,
            self.cors.take(),
            std::mem::take(&mut self.route_methods),
        )
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

/// Waits for the shutdown signal on a parked thread, which ends when the sending end is dropped.
fn stop_when_told(
    shutdown: Receiver<()>,
    shared: Arc<AppShared>,
    wait: Duration,
) -> io::Result<()> {
    thread::Builder::new()
        .name("humphrey_ws shutdown".into())
        .spawn(move || {
            if shutdown.recv().is_ok() {
                shared.shutdown(wait);
            }
        })
        .map(drop)
}
