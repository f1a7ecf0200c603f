# syntax=docker/dockerfile:1
# The service as an image: compiled JavaScript, production packages, a user that is not root, a root that may be read-only.
# Needs: HOST is 0.0.0.0 here, so the service starts only with API_TOKEN set or ALLOW_ANONYMOUS=1.

FROM node:22-bookworm-slim AS build
WORKDIR /app
# The SQLite addon is compiled where its prebuilt binary cannot be fetched.
RUN apt-get update \
  && apt-get install -y --no-install-recommends g++ make python3 \
  && rm -rf /var/lib/apt/lists/*
# Prisma looks for an engine binary on a host of its own unless it is told that there is one; nothing here starts it.
ENV PRISMA_SCHEMA_ENGINE_BINARY=/bin/true \
  CHECKPOINT_DISABLE=1
COPY package.json package-lock.json .npmrc ./
RUN npm ci
COPY prisma.config.ts ./
COPY prisma ./prisma
RUN npx prisma generate
COPY tsconfig.json tsconfig.build.json ./
COPY src ./src
RUN npm run build

# A vendor-driver mock that talks to the service by name: docker-compose.yml starts it.
FROM build AS driver
COPY examples/compose-driver.ts ./examples/compose-driver.ts
USER node
CMD ["node", "--import=tsx", "examples/compose-driver.ts"]

FROM build AS production
RUN npm prune --omit=dev --omit=optional

FROM node:22-bookworm-slim AS runtime
ENV NODE_ENV=production \
  HOST=0.0.0.0 \
  PORT=7180 \
  DATABASE_URL=file:/data/emulator.db
WORKDIR /app
COPY package.json LICENSE ./
COPY --from=production /app/node_modules ./node_modules
COPY --from=production /app/prisma ./prisma
COPY --from=production /app/dist ./dist
RUN mkdir /data && chown node:node /data
USER node
VOLUME /data
EXPOSE 7180
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT}/healthz`).then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
CMD ["node", "dist/server.js"]
