import { InferenceClient } from "@huggingface/inference";

const client = ({ url, key }, path) => new InferenceClient(key, { endpointUrl: url + path });

export const embed = (server, texts) =>
  client(server, "/").featureExtraction({ inputs: texts });

export const embedPath = (server, texts) =>
  client(server, "/embed").featureExtraction({ inputs: texts });

export const similarity = (server, source_sentence, sentences) =>
  client(server, "/").sentenceSimilarity({ inputs: { source_sentence, sentences } });
