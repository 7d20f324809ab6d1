//! fastwebsockets, upgraded by hyper as in its examples. In a fan-out each connection is split into a reading and a writing
//! task, since its read is not cancel-safe.

use std::convert::Infallible;
use std::io;

use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::broadcast::Receiver;

use crate::http1;
use crate::registry::{self, Job, Registry};

pub async fn serve(listener: TcpListener, registry: Registry) -> io::Result<()> {
    http1::serve(listener, registry, answer).await
}

async fn answer(
    mut request: Request<Incoming>,
    registry: Registry,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let publishes = registry.is_publisher(request.uri().path());
    // Subscribe before the response: connected clients must receive everything published from then on.
    let receiver = registry.everyone.subscribe();
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tokio::spawn(async move {
        // An error ends the connection, which the load client reports.
        let _ = match registry.job {
            Job::FanOut => fan_out(upgraded, registry, receiver, publishes).await,
            Job::Echo | Job::Blocked => echo(upgraded, registry.job).await,
        };
    });
    Ok(response)
}

async fn echo(upgraded: upgrade::UpgradeFut, job: Job) -> Result<(), WebSocketError> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => {
                registry::handle(job, &frame.payload);
                socket.write_frame(frame).await?;
            }
            _ => {}
        }
    }
}

async fn fan_out(
    upgraded: upgrade::UpgradeFut,
    registry: Registry,
    mut receiver: Receiver<Bytes>,
    publishes: bool,
) -> Result<(), WebSocketError> {
    let (mut read, mut write) = upgraded.await?.split(tokio::io::split);
    let writer = tokio::spawn(async move {
        while let Ok(message) = receiver.recv().await {
            let frame = Frame::binary(Payload::Borrowed(&message));
            if write.write_frame(frame).await.is_err() {
                return;
            }
        }
    });
    loop {
        // The bench sends no pings, so nothing has to be answered.
        let frame = read
            .read_frame::<_, Infallible>(&mut |_| async { Ok(()) })
            .await;
        match frame {
            Ok(frame) if frame.opcode == OpCode::Binary => {
                if publishes {
                    // No subscribers is not an error.
                    let _ = registry
                        .everyone
                        .send(Bytes::copy_from_slice(&frame.payload));
                }
            }
            Ok(frame) if frame.opcode != OpCode::Close => {}
            _ => break,
        }
    }
    writer.abort();
    Ok(())
}
