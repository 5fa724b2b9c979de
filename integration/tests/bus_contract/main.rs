//! What every bus must do, on real servers: one suite, run for each of them.

mod contract;
mod log;
mod secured;
mod server;

/// Makes the tests of one bus out of the suite.
macro_rules! contract {
    ($bus:ident: $($case:ident),+ $(,)?) => {
        mod $bus {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::contract::$case(&crate::server::$bus().await).await;
                }
            )+
        }
    };
}

contract!(in_process:
    ratings_of_an_agent_come_in_order_and_everything_comes_once,
    a_full_bus_refuses_says_when_to_come_back_and_loses_nothing,
    batches_are_bounded_and_what_is_paused_waits,
    publishers_that_go_leave_everything_to_be_handed_out,
);

macro_rules! durable {
    ($($bus:ident),+) => {
        $(contract!($bus:
            ratings_of_an_agent_come_in_order_and_everything_comes_once,
            a_full_bus_refuses_says_when_to_come_back_and_loses_nothing,
            batches_are_bounded_and_what_is_paused_waits,
            what_was_not_committed_comes_again_after_a_crash,
            a_seek_goes_back_to_where_it_says,
            a_record_that_is_no_rating_is_put_aside_and_what_follows_still_comes,
            a_consumer_that_closes_hands_its_partitions_over_at_once,
            members_share_the_partitions_and_between_them_deliver_everything_once,
            partitions_that_are_added_while_it_runs_are_read,
        );)+
    };
}

durable!(redis, kafka, nats);
