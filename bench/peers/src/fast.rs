//! fastwebsockets, upgraded by hyper as its examples do it. In a fan-out each connection is split into a task that reads
//! and one that writes, since its read can't be given up half-way.

use std::convert::Infallible;
use std::io;

use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::broadcast::Receiver;

use crate::hall::{self, Hall, Job};
use crate::http1;

pub async fn serve(listener: TcpListener, hall: Hall) -> io::Result<()> {
    http1::serve(listener, hall, answer).await
}

async fn answer(
    mut request: Request<Incoming>,
    hall: Hall,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let publishes = hall.is_publisher(request.uri().path());
    // Before the answer: who is connected must get what is published then.
    let receiver = hall.everyone.subscribe();
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tokio::spawn(async move {
        // An error is the end of the connection, which the client reports.
        let _ = match hall.job {
            Job::FanOut => fan_out(upgraded, hall, receiver, publishes).await,
            Job::Echo | Job::Blocked => echo(upgraded, hall.job).await,
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
                hall::handle(job, &frame.payload);
                socket.write_frame(frame).await?;
            }
            _ => {}
        }
    }
}

async fn fan_out(
    upgraded: upgrade::UpgradeFut,
    hall: Hall,
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
        // The bench sends no pings: nothing has to be answered.
        let frame = read
            .read_frame::<_, Infallible>(&mut |_| async { Ok(()) })
            .await;
        match frame {
            Ok(frame) if frame.opcode == OpCode::Binary => {
                if publishes {
                    // Nobody there to hear it is no error.
                    let _ = hall.everyone.send(Bytes::copy_from_slice(&frame.payload));
                }
            }
            Ok(frame) if frame.opcode != OpCode::Close => {}
            _ => break,
        }
    }
    writer.abort();
    Ok(())
}
