// Ratings at a fixed rate, single or batched, and an onlooker: an agent that watches its own limit change.
//
//   integration/load k6 ratings                                   10,000 events a second in batches of 100
//   RATE=1000 BATCH=1 integration/load k6 ratings                 single ratings
//
// RATE: events a second (10000). BATCH: events in a request (100). DURATION: 60s. AGENTS: 1000.
import http from 'k6/http';
import { check } from 'k6';
import { Counter } from 'k6/metrics';
export { onlooker } from './onlooker.js';

const rate = Number(__ENV.RATE || 10000);
const batch = Number(__ENV.BATCH || 100);
const agents = Number(__ENV.AGENTS || 1000);
const duration = __ENV.DURATION || '60s';

const events = new Counter('ratings_accepted');

export const options = {
  scenarios: {
    ratings: {
      executor: 'constant-arrival-rate',
      exec: 'ratings',
      rate: Math.ceil(rate / batch),
      timeUnit: '1s',
      duration,
      preAllocatedVUs: 50,
      maxVUs: 400,
    },
    onlooker: { executor: 'constant-vus', exec: 'onlooker', vus: 1, duration },
  },
  thresholds: {
    checks: ['rate==1'],
    dropped_iterations: ['count==0'],
    rating_to_limit_ms: ['p(99)<150'],
  },
  summaryTrendStats: ['p(50)', 'p(95)', 'p(99)', 'max', 'count'],
  discardResponseBodies: true,
};

const posted = { headers: { authorization: `Bearer ${__ENV.MERIT_COLLECTOR}`, 'content-type': 'application/json' } };
let count = 0;

const rating = () => {
  count += 1;
  return {
    agent_id: `load-${(count * 7919 + __VU) % agents}`,
    user_id: `user-${__VU}-${count % 500}`,
    score: count % 2 ? 3.5 : 2.5,
  };
};

export function ratings() {
  const body = batch === 1 ? rating() : Array.from({ length: batch }, rating);
  const to = batch === 1 ? '/v1/rating' : '/v1/ratings';
  const answer = http.post(`${__ENV.MERIT_INGEST}${to}`, JSON.stringify(body), posted);
  // A batch answers per item: 202 when all were taken.
  if (check(answer, { accepted: (r) => r.status === 202 })) events.add(batch);
}

// The first ratings of a broker's life take long; nobody measures those.
export function setup() {
  for (let i = 0; i < 50; i += 1) {
    http.post(`${__ENV.MERIT_INGEST}/v1/ratings`, JSON.stringify(Array.from({ length: 100 }, rating)), posted);
  }
}
