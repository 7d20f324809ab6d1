//! What only NATS has: servers that stand in for each other, routes between them, limits and permissions. What every broker has
//! to do is in `cluster.rs` and `cluster_faults.rs`.

use crate::brokers::{NatsServer, free_port};
use crate::cluster_faults::{Connections, check_accounts_of, receive_more};
use crate::nodes::{Node, hear_each_other, joining, stop};
use crate::support::{Client, eventually, holds_within};
use crate::tcp_proxy::TcpProxy;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, SendErrorReason};

/// Servers dial their routes at once.
const ROUTED_WITHIN: Duration = Duration::from_secs(2);

/// Two servers of one NATS cluster, whose route leads through a proxy.
struct Routed {
    servers: [NatsServer; 2],
    route: TcpProxy,
}

impl Routed {
    fn start() -> Option<Self> {
        // Another process may take a port for a route before the server does.
        for _ in 0..5 {
            let ports = [free_port(), free_port()];
            let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let route = TcpProxy::start(address(ports[1]));
            let config = |port, routes: &str| {
                format!(
                    "cluster {{ name: tests, listen: 127.0.0.1:{port}, no_advertise: true, {routes} }}"
                )
            };
            let to_second = format!("routes: [nats://127.0.0.1:{}]", route.address().port());
            let second = NatsServer::start(&config(ports[1], ""))?;
            let first = NatsServer::start(&config(ports[0], &to_second))?;
            if holds_within(ROUTED_WITHIN, || route.connections() > 0) {
                return Some(Self {
                    servers: [first, second],
                    route,
                });
            }
        }
        panic!("the servers form no cluster");
    }

    /// The URL with both servers. A node begins with one of them by chance.
    fn url(&self) -> String {
        let other = self.servers[1].address();
        format!("{},{other}", self.servers[0].url())
    }
}

/// Broadcasts to the room until both clients hear each other's node.
fn hear_rooms(nodes: &[Node; 2], clients: &mut [Client; 2]) {
    hear_each_other(&[&nodes[0], &nodes[1]]);
    for (from, to) in [(0, 1), (1, 0)] {
        // In a NATS cluster, it takes a moment until the other server knows of a subscription.
        eventually("the other node receives messages", || {
            let before = nodes[to].metrics().received;
            nodes[from].sender.room("a").broadcast("are you there?");
            holds_within(Duration::from_millis(100), || {
                nodes[to].metrics().received > before
            })
        });
    }
    for node in nodes {
        node.sender.room("a").broadcast("begin");
    }
    for client in clients {
        for _ in 0..2 {
            while client.receive_text() != "begin" {}
        }
    }
}

#[test]
fn app_with_a_history_does_not_start_on_nats() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_history("news", HistoryLimits::messages(10))
        .with_cluster("nats://localhost");
    let error = app.with_address("127.0.0.1:0").start().unwrap_err();
    assert!(error.to_string().contains("NATS"), "{error}");
    // A pattern that turns histories off asks for none.
    let app = AsyncWebsocketApp::<()>::new()
        .with_history("news", HistoryLimits::NONE)
        .with_cluster("nats://127.0.0.1:1");
    drop(app.with_address("127.0.0.1:0").start().unwrap());
}

#[test]
fn credentials_of_the_url_are_accepted_or_rejected() {
    let users = "authorization { users: [{user: me, password: \"p@ss\"}] }";
    let (Some(users), Some(token)) = (
        NatsServer::start(users),
        NatsServer::start("authorization { token: t0ken }"),
    ) else {
        return;
    };
    for (server, credentials) in [(&users, "me:p%40ss@"), (&token, "t0ken@")] {
        let url = |address: SocketAddr, credentials: &str| format!("nats://{credentials}{address}");
        Node::joining(url(server.address(), credentials)).stop();
        for wrong in ["", "me:wrong@", "wrong@"] {
            let proxy = TcpProxy::start(server.address());
            let node = Node::start(joining().with_cluster(url(proxy.address(), wrong)));
            eventually("the server has rejected a connection", || {
                proxy.connections() > 1
            });
            // Its own clients are served.
            let mut client = node.join("a");
            node.sender.room("a").broadcast("local");
            assert_eq!(client.receive_text(), "local");
            assert_eq!(node.metrics().connections, 0);
            node.stop();
        }
    }
}

#[test]
fn messages_beyond_the_servers_limit_are_refused() {
    let Some(server) = NatsServer::start("max_payload: 2000") else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(server.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let mut client = nodes[1].join("a");
    let room = nodes[0].sender.room("a");
    let longest = (1..=2000)
        .rev()
        .find(|&len| room.try_broadcast("x".repeat(len)).is_ok())
        .unwrap();
    assert!((1900..2000).contains(&longest), "{longest}");
    assert_eq!(client.receive_text().len(), longest);
    let refused = room.try_broadcast("x".repeat(longest + 1)).unwrap_err();
    assert_eq!(refused.reason, SendErrorReason::TooLarge);
    room.broadcast("last");
    assert_eq!(client.receive_text(), "last");
    for node in &nodes {
        let metrics = node.metrics();
        assert_eq!((metrics.connections, metrics.dropped_broker), (1, 0));
    }
    stop(nodes);
}

#[test]
fn messages_that_the_user_may_not_publish_are_counted() {
    let config = permissions(
        "publish: { allow: \"humphrey_ws.>\", deny: \"humphrey_ws.room.YQ\" }, subscribe: \">\"",
    );
    let Some(server) = NatsServer::start(&config) else {
        return;
    };
    let url = format!("nats://me:pw@{}", server.address());
    let nodes = [0; 2].map(|_| Node::joining(url.as_str()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let mut client = nodes[1].join("a+b");
    for n in 0..10 {
        nodes[0].sender.room("a").broadcast("denied");
        nodes[0].sender.room("b").broadcast(n.to_string());
    }
    for n in 0..10 {
        assert_eq!(client.receive_text(), n.to_string());
    }
    eventually("the refused messages are counted", || {
        let metrics = nodes[0].metrics();
        metrics.dropped_broker == 10 && metrics.confirmed >= 10
    });
    assert_eq!(nodes[0].metrics().connections, 1);
    stop(nodes);
}

/// A user `me` with these permissions.
fn permissions(permissions: &str) -> String {
    format!(
        "authorization {{ users: [{{user: me, password: pw, permissions: {{ {permissions} }} }}] }}"
    )
}

/// Two nodes, of which the second has members in the rooms `a`, `b` and `c`, and may not subscribe to all of them.
fn check_refused_subscriptions(config: &str, allow: impl FnOnce(&mut NatsServer)) {
    let Some(mut server) = NatsServer::start(config) else {
        return;
    };
    let url = format!("nats://me:pw@{}", server.address());
    let nodes = [0; 2].map(|_| Node::joining(url.as_str()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let _client = nodes[1].join("a+b+c");
    let heard = |room: &str| {
        let before = nodes[1].metrics().received;
        nodes[0].sender.room(room).broadcast("is it heard?");
        holds_within(Duration::from_millis(300), || {
            nodes[1].metrics().received > before
        })
    };
    // A message that takes longer than usual looks refused, too.
    eventually("only one room is refused", || {
        let refused = ["a", "b", "c"].into_iter().filter(|room| !heard(room));
        refused.count() == 1
    });
    assert_eq!(nodes[1].metrics().connections, 1);
    // The node tries again every second.
    allow(&mut server);
    for room in ["a", "b", "c"] {
        eventually("the room is subscribed", || heard(room));
    }
    stop(nodes);
}

#[test]
fn refused_subscription_is_tried_again_until_it_is_allowed() {
    let config =
        permissions("publish: \">\", subscribe: { allow: \">\", deny: \"humphrey_ws.room.Yg\" }");
    let allow = permissions("publish: \">\", subscribe: \">\"");
    check_refused_subscriptions(&config, |server| server.reload(&allow));
}

#[test]
fn node_without_one_of_its_subscriptions_goes_on() {
    // Everyone, the nodes, itself, and two rooms.
    let limited = |max: usize| {
        format!(
            "max_subscriptions: {max}\n{}",
            permissions("publish: \">\"")
        )
    };
    check_refused_subscriptions(&limited(5), |server| {
        // A server takes this limit at its start only.
        server.configure(&limited(100));
        server.restart();
    });
}

#[test]
fn revoked_permission_is_noticed() {
    let all = permissions("publish: \">\", subscribe: \">\"");
    let Some(mut server) = NatsServer::start(&all) else {
        return;
    };
    let node = Node::joining(format!("nats://me:pw@{}", server.address()));
    let _client = node.join("a");
    let denied = "publish: \">\", subscribe: { allow: \">\", deny: \"humphrey_ws.room.YQ\" }";
    server.reload(&permissions(denied));
    eventually("the node has connected again", || {
        node.metrics().connections > 1
    });
    stop([node]);
}

#[test]
fn node_turns_to_another_server_when_it_loses_one() {
    let Some(mut cluster) = Routed::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(cluster.url()));
    let mut clients = [nodes[0].join("a"), nodes[1].join("a")];
    hear_rooms(&nodes, &mut clients);
    cluster.servers[0].kill();
    hear_rooms(&nodes, &mut clients);
    // Both are at the second server now, and turn to the first one.
    cluster.servers[0].restart();
    let before = [&nodes[0], &nodes[1]].map(|node| node.metrics().connections);
    cluster.servers[1].kill();
    for (node, before) in nodes.iter().zip(before) {
        eventually("the node is connected to the first server", || {
            node.metrics().connections == before + 1
        });
    }
    hear_rooms(&nodes, &mut clients);
    stop(nodes);
}

#[test]
fn cut_route_between_servers_loses_nothing_that_is_not_counted() {
    let Some(mut cluster) = Routed::start() else {
        return;
    };
    let nodes = [0, 1, 0].map(|server: usize| Node::joining(cluster.servers[server].url()));
    check_accounts_of(nodes, &mut cluster, Connections::Last, |cluster, nodes| {
        for _ in 0..5 {
            cluster.route.cut();
            receive_more(nodes, 500);
        }
    });
}
