// WEBHOOK_ALLOW: where webhooks may go. Loopback always; any other address only where its name or a network of it is listed.
// The decision is about addresses, after the one resolution of the name: what was checked is what is connected to.

import { lookup } from 'node:dns/promises';
import ipaddr from 'ipaddr.js';

export interface Address {
  address: string;
  family: 4 | 6;
}

/** All addresses of a name, in the resolver's order. */
export type Resolve = (name: string) => Promise<Address[]>;

const resolveByDns: Resolve = async (name) =>
  (await lookup(name, { all: true })).map(({ address, family }) => ({ address, family: family === 6 ? 6 : 4 }));

type Network = [ipaddr.IPv4 | ipaddr.IPv6, number];

const HOST_NAME = /^(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?$/;

/** An address in the form it is compared in: an IPv4 address inside IPv6 is that IPv4 address. */
const addressIn = (text: string): ipaddr.IPv4 | ipaddr.IPv6 => ipaddr.process(text);

/** Null where the text is neither a network nor an address. */
function networkIn(text: string): Network | null {
  if (ipaddr.isValidCIDR(text)) return ipaddr.parseCIDR(text);
  if (!text.includes('.') && !text.includes(':')) return null;
  if (!ipaddr.isValid(text) || (text.includes('.') && !text.includes(':') && !ipaddr.IPv4.isValidFourPartDecimal(text)))
    return null;
  const address = addressIn(text);
  return [address, address.kind() === 'ipv4' ? 32 : 128];
}

/** What is wrong with each entry of a WEBHOOK_ALLOW that is no host name, address or network. */
export function webhookAllowErrors(entries: readonly string[]): string[] {
  return entries
    .filter((entry) => networkIn(entry) === null && !isHostName(entry.toLowerCase()))
    .map((entry) => `'${entry}' is neither a host name nor a network like 10.0.0.0/8`);
}

/** A name whose last label is a number would be read as an address by a URL parser. */
const isHostName = (name: string): boolean => HOST_NAME.test(name) && !/(^|\.)(\d+|0x[0-9a-f]*)\.?$/.test(name);

export class WebhookRefused extends Error {
  constructor(detail: string) {
    super(detail);
    this.name = 'WebhookRefused';
  }
}

export class WebhookPolicy {
  private readonly names = new Set<string>();
  private readonly networks: Network[] = [];

  /** Throws where an entry is malformed; see webhookAllowErrors(). */
  constructor(
    entries: readonly string[],
    private readonly resolve: Resolve = resolveByDns,
  ) {
    const errors = webhookAllowErrors(entries);
    if (errors.length > 0) throw new Error(`WEBHOOK_ALLOW: ${errors.join('; ')}`);
    for (const entry of entries) {
      const network = networkIn(entry);
      if (network === null) this.names.add(withoutDot(entry.toLowerCase()));
      else this.networks.push(network);
    }
  }

  /** The addresses that a URL's host may be connected at, resolved now. Throws WebhookRefused where there is none. */
  async addressesOf(url: URL): Promise<Address[]> {
    const name = withoutDot(url.hostname.replace(/^\[(.*)\]$/, '$1').toLowerCase());
    const addresses = ipaddr.isValid(name) ? [literal(name)] : await this.resolve(name);
    if (this.names.has(name)) return addresses;
    const allowed = addresses.filter(({ address }) => this.allows(address));
    if (allowed.length > 0) return allowed;
    const found = addresses.map(({ address }) => address).join(', ');
    throw new WebhookRefused(`WEBHOOK_ALLOW lists neither '${name}' nor a network of its address (${found || 'none'})`);
  }

  private allows(text: string): boolean {
    const address = addressIn(text);
    if (address.range() === 'loopback') return true;
    return this.networks.some(([network, bits]) => network.kind() === address.kind() && address.match(network, bits));
  }
}

const withoutDot = (name: string): string => name.replace(/\.$/, '');
const literal = (address: string): Address => ({ address, family: address.includes(':') ? 6 : 4 });
