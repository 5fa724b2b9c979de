// Tokens of agents and of the collector, signed here: HS256 (RFC 7515).
import crypto from 'k6/crypto';
import encoding from 'k6/encoding';

const part = (value) => encoding.b64encode(JSON.stringify(value), 'rawurl');

export function agentToken(agent) {
  const claims = {
    iss: __ENV.MERIT_ISSUER,
    aud: __ENV.MERIT_AUDIENCE,
    exp: Math.floor(Date.now() / 1000) + 3600,
    sub: `owner-of-${agent}`,
    agent_id: agent,
  };
  const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  return `${signed}.${crypto.hmac('sha256', __ENV.MERIT_SECRET, signed, 'base64rawurl')}`;
}
