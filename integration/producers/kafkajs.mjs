// Puts ratings on a topic as a Node service would, by kafkajs.
//
//   node kafkajs.mjs BROKERS TOPIC keyless            one rating without a key: prints the broker's answer, ends with 3
//   node kafkajs.mjs BROKERS TOPIC keyed AGENTS EACH  ratings keyed <user>|<agent>, by a partitioner of its own
import kafkajs from 'kafkajs';

const { Kafka, logLevel } = kafkajs;
const [brokers, topic, how, agents, each] = process.argv.slice(2);
const kafka = new Kafka({ clientId: 'ratings', brokers: brokers.split(','), logLevel: logLevel.NOTHING, retry: { retries: 2 } });

// By the sum of the key's bytes: users spread an agent's ratings over all partitions.
const createPartitioner = () => ({ partitionMetadata, message }) =>
  [...Buffer.from(message.key ?? '')].reduce((sum, byte) => sum + byte, 0) % partitionMetadata.length;

const rating = (agent, user, score) => JSON.stringify({ agentId: agent, userId: user, score, timestamp: Date.now() });

const producer = kafka.producer({ createPartitioner });
await producer.connect();
try {
  if (how === 'keyless') {
    await producer.send({ topic, acks: -1, messages: [{ value: rating('a', 'u', 4) }] });
    console.log('taken');
  } else {
    for (let n = 0; n < Number(each); n += 1) {
      const messages = Array.from({ length: Number(agents) }, (_, agent) => {
        const [name, user] = [`node-${agent}`, `user-${n}`];
        // The timestamp names it: what is sent twice because nobody answered counts once.
        return { key: `${user}|${name}`, value: rating(name, user, n % 3 === 0 ? 2 : 4) };
      });
      await producer.send({ topic, acks: -1, messages });
    }
    console.log('taken');
  }
} catch (error) {
  console.error(`${error.name}: ${error.message}: ${error.type ?? error.cause?.type ?? ''}`);
  process.exitCode = 3;
} finally {
  await producer.disconnect();
}
