// Single ratings over gRPC at a fixed rate, each a unary call, and the onlooker of ratings.js.
//
//   integration/load k6 grpc                                      1,000 ratings a second
//   RATE=2000 DURATION=20s integration/load k6 grpc
//
// RATE: ratings a second (1000). DURATION: 60s, after ten seconds at that rate that do not count: the first ratings of a
// broker's life take long. AGENTS: 1000. A virtual user has one connection and one call on it at a time: how many calls
// are on their way is how many users there are (50 to 400).
import grpc from 'k6/net/grpc';
import { check } from 'k6';
import { Counter } from 'k6/metrics';
export { onlooker } from './onlooker.js';

const rate = Number(__ENV.RATE || 1000);
const agents = Number(__ENV.AGENTS || 1000);
const duration = __ENV.DURATION || '60s';

const accepted = new Counter('ratings_accepted');

const at = (exec, startTime, length) => ({
  executor: 'constant-arrival-rate',
  exec,
  startTime,
  rate,
  timeUnit: '1s',
  duration: length,
  preAllocatedVUs: 50,
  maxVUs: 400,
});

export const options = {
  scenarios: {
    warm: at('warm', '0s', '10s'),
    ratings: at('ratings', '10s', duration),
    onlooker: { executor: 'constant-vus', exec: 'onlooker', vus: 1, startTime: '10s', duration },
  },
  thresholds: {
    checks: ['rate==1'],
    'dropped_iterations{scenario:ratings}': ['count==0'],
    'grpc_req_duration{scenario:ratings}': ['p(99)<1000'],
    rating_to_limit_ms: ['p(99)<150'],
  },
  summaryTrendStats: ['p(50)', 'p(95)', 'p(99)', 'max', 'count'],
  discardResponseBodies: true,
};

const client = new grpc.Client();
client.load(['../../sidecar/schema'], 'merit/rating/v1/rating.proto');
const called = { metadata: { authorization: `Bearer ${__ENV.MERIT_COLLECTOR}` } };

let connected = false;
let count = 0;

const rateOne = () => {
  if (!connected) {
    client.connect(__ENV.MERIT_GRPC.replace('http://', ''), { plaintext: true });
    connected = true;
  }
  count += 1;
  const rating = {
    agent_id: `load-${(count * 7919 + __VU) % agents}`,
    user_id: `user-${__VU}-${count % 500}`,
    score: count % 2 ? 3.5 : 2.5,
  };
  return client.invoke('merit.rating.v1.RatingService/Rate', { rating }, called);
};

export function ratings() {
  if (check(rateOne(), { accepted: (r) => r && r.status === grpc.StatusOK })) accepted.add(1);
}

export const warm = rateOne;
