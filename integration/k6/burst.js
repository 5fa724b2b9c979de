// A hundred agents with fifty requests each, all at once: exactly the bucket passes, the rest is told when to come back.
//
//   integration/load k6 burst
import http from 'k6/http';
import { check } from 'k6';
import { Counter } from 'k6/metrics';
import { agentToken } from './token.js';

const agents = Number(__ENV.AGENTS || 100);
const each = Number(__ENV.EACH || 50);
// The limits of agents that nobody rated: integration/src/merit.rs.
const capacity = 40;
const refill = 20;

const passed = new Counter('passed');
const denied = new Counter('denied');

export const options = {
  scenarios: { burst: { executor: 'per-vu-iterations', vus: agents, iterations: 1, maxDuration: '60s' } },
  thresholds: {
    checks: ['rate==1'],
    // What is there, and what comes back while the burst lasts: five seconds of it would be too slow a burst to call one.
    passed: [`count>=${agents * capacity}`, `count<=${agents * (capacity + 5 * refill)}`],
    denied: ['count>0'],
  },
};

export default function () {
  const token = agentToken(`burst-${__VU}`);
  const ask = ['GET', `${__ENV.MERIT_GATEWAY}/`, null, { headers: { authorization: `Bearer ${token}` } }];
  const answers = http.batch(Array.from({ length: each }, () => ask));
  for (const answer of answers) {
    if (answer.status !== 429) {
      check(answer, { 'passes or is told to wait': (r) => r.status === 200 });
      passed.add(1);
      continue;
    }
    denied.add(1);
    const problem = answer.json();
    check(answer, {
      'Retry-After is whole seconds from 1': (r) => /^[1-9][0-9]*$/.test(r.headers['Retry-After'] || ''),
      'the body says the same in milliseconds': (r) =>
        Math.ceil(problem.retry_after_ms / 1000) === Number(r.headers['Retry-After']),
      'it is a problem': (r) => r.headers['Content-Type'] === 'application/problem+json',
      'nobody keeps it': (r) => r.headers['Cache-Control'] === 'no-store',
    });
  }
}
